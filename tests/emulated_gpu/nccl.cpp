// What CuPy asks of NCCL, for ranks that are processes of one machine: they meet in shared memory.
//
// An exchange is done when it is asked for, after what its stream has to do, and so the calls wait for each other. (On GPUs
// they return at once; but here nobody would do the rest while a process waits for another in MPI.)

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>

#define API extern "C" __attribute__((visibility("default")))
typedef int Result;
enum { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, UNSUPPORTED = 5, SUM = 0 };
struct Id {
    char name[128];
};
const size_t CHUNK = 1 << 20;
struct Meeting {
    std::atomic<unsigned long long> come;
    char slots[];  // CHUNK bytes for each rank
};
struct Comm_ {
    int ranks, rank;
    unsigned long long met = 0;
    Meeting* meeting;
    void meet() {
        ++met;
        ++meeting->come;
        while (meeting->come < met * ranks) usleep(50);
    }
    char* slot(int r) { return meeting->slots + r * CHUNK; }
};
typedef Comm_* Comm;

static Result after(void* stream, std::function<void()> work) {
    typedef void Enqueue(void*, std::function<void()>*, int);
    static Enqueue* enqueue = (Enqueue*)dlsym(RTLD_DEFAULT, "emulator_enqueue");
    enqueue(stream, new std::function<void()>(std::move(work)), 1);
    return SUCCESS;
}
static size_t size_of(int kind) { return kind < 2 ? 1 : kind < 4 || kind == 7 ? 4 : kind == 6 ? 2 : 8; }

// All put a part of what they have into their slots, meet, take what they want, and meet again.
static void in_parts(Comm c, const void* from, size_t bytes, std::function<void(size_t at, size_t n)> take) {
    for (size_t at = 0; at < bytes; at += CHUNK) {
        size_t n = bytes - at < CHUNK ? bytes - at : CHUNK;
        memcpy(c->slot(c->rank), (const char*)from + at, n);
        c->meet();
        take(at, n);
        c->meet();
    }
}
template <class T>
static void add(Comm c, void* to, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        T sum = 0;
        for (int r = 0; r < c->ranks; ++r) sum += ((T*)c->slot(r))[i];
        ((T*)to)[i] = sum;
    }
}

API const char* ncclGetErrorString(Result) { return "said by the emulated GPU"; }
API Result ncclGetVersion(int* v) { return *v = 22700, SUCCESS; }
API Result ncclGetUniqueId(Id* id) {
    std::random_device draw;
    snprintf(id->name, sizeof id->name, "/emulated_nccl_%d_%08x", getpid(), draw());
    return SUCCESS;
}
API Result ncclCommInitRankConfig(Comm* c, int ranks, Id id, int rank, void*) {
    size_t bytes = sizeof(Meeting) + ranks * CHUNK;
    int file = shm_open(id.name, O_CREAT | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, bytes)) return SYSTEM_ERROR;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return SYSTEM_ERROR;
    *c = new Comm_{ranks, rank, 0, (Meeting*)memory};
    (*c)->meet();
    shm_unlink(id.name);
    return SUCCESS;
}
API Result ncclCommInitRank(Comm* c, int ranks, Id id, int rank) { return ncclCommInitRankConfig(c, ranks, id, rank, nullptr); }
API Result ncclCommDestroy(Comm) { return SUCCESS; }
API Result ncclCommAbort(Comm) { return SUCCESS; }
API Result ncclAllReduce(const void* from, void* to, size_t count, int kind, int op, Comm c, void* stream) {
    if (op != SUM || (kind != 2 && kind != 4 && kind != 7 && kind != 8)) return INVALID_ARGUMENT;
    return after(stream, [=] {
        in_parts(c, from, count * size_of(kind), [=](size_t at, size_t n) {
            char* here = (char*)to + at;
            if (kind == 2)
                add<int>(c, here, n / 4);
            else if (kind == 4)
                add<long long>(c, here, n / 8);
            else if (kind == 7)
                add<float>(c, here, n / 4);
            else
                add<double>(c, here, n / 8);
        });
    });
}
API Result ncclAllGather(const void* from, void* to, size_t count, int kind, Comm c, void* stream) {
    size_t bytes = count * size_of(kind);
    return after(stream, [=] {
        in_parts(c, from, bytes, [=](size_t at, size_t n) {
            for (int r = 0; r < c->ranks; ++r) memcpy((char*)to + r * bytes + at, c->slot(r), n);
        });
    });
}
API Result ncclBroadcast(const void* from, void* to, size_t count, int kind, int root, Comm c, void* stream) {
    return after(stream, [=] {
        in_parts(c, from, count * size_of(kind), [=](size_t at, size_t n) { memcpy((char*)to + at, c->slot(root), n); });
    });
}
