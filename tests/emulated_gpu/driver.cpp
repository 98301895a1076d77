// What CuPy asks of CUDA's driver and runtime, answered on the CPU.
//
// Work waits in its stream, as on a GPU, until somebody waits for it, or chance lets it be done: in any order that CUDA allows,
// which is first in, first out in each stream, what events ask, and that the default stream and the others take turns. So what
// is used before it is there, or overwritten while work still needs it, comes out wrong here. Memory is filled with NaN.

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

// Of CUDA's headers, what is used here.
typedef int CUresult, CUdevice, CUfunction_attribute, cudaError_t, cudaDeviceAttr, cudaMemcpyKind, cudaStreamCaptureStatus;
typedef unsigned long long CUdeviceptr;
typedef void *CUcontext, *CUmodule, *CUfunction, *CUstream, *CUoccupancyB2DSize, *cudaStream_t, *cudaEvent_t;
typedef void (*cudaHostFn_t)(void*);
enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_NOT_FOUND = 500,
    CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0
};
enum { cudaSuccess = 0, cudaErrorInvalidDevice = 101, cudaErrorNotReady = 600 };
enum {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76
};
enum { cudaMemoryTypeUnregistered = 0, cudaMemoryTypeHost = 1, cudaMemoryTypeDevice = 2, cudaStreamNonBlocking = 1 };
struct cudaPointerAttributes {
    int type, device;
    void *devicePointer, *hostPointer;
};
struct cudaDeviceProp {  // its beginning
    char name[256], uuid[16], luid[8];
    unsigned luidDeviceNodeMask;
    size_t totalGlobalMem, sharedMemPerBlock;
    int regsPerBlock, warpSize;
    size_t memPitch;
    int maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3], clockRate;
    size_t totalConstMem;
    int major, minor;
    size_t textureAlignment, texturePitchAlignment;
    int deviceOverlap, multiProcessorCount;
};

namespace {

struct Event_ {
    unsigned long long wanted = 0, done = 0;  // records asked for, and done
};
struct Operation {
    unsigned long long number;
    std::function<void()> work;
    std::shared_ptr<Event_> awaits;  // runs when this many of its records are done
    unsigned long long awaited = 0;
};
struct Stream_ {
    bool blocking = true, legacy = false;
    std::deque<Operation> queue;
};
struct Kernel {
    int (*run)(const unsigned* grid, const unsigned* block, size_t shared, void** arguments);
    const size_t* sizes;
    std::string name;
};
struct Module_ {
    void* handle;
    std::map<std::string, Kernel*> kernels;
};

std::recursive_mutex lock;
std::vector<Stream_*> streams;
std::map<cudaEvent_t, std::shared_ptr<Event_>> events;
unsigned long long numbers = 0, counts[4];
enum { LAUNCHES, COPIES, WAITS, ALLOCATIONS };
thread_local int device = 0;
int version = 12090;  // of CUDA
unsigned turn = getenv("EMULATED_GPU_SEED") ? atoi(getenv("EMULATED_GPU_SEED")) : 12345;
bool asked(const char* variable) { return getenv(variable) && *getenv(variable) == '1'; }
const bool skip = asked("EMULATED_GPU_SKIP"), guard = asked("EMULATED_GPU_GUARD"), trace = asked("EMULATED_GPU_TRACE");
const int gpus = getenv("EMULATED_GPU_COUNT") ? atoi(getenv("EMULATED_GPU_COUNT")) : 1;

Stream_* stream_of(const void* s) {
    if (streams.empty()) {
        streams.push_back(new Stream_);
        streams[0]->legacy = true;
    }
    return s && s != (void*)1 && s != (void*)2 ? (Stream_*)s : streams[0];
}

bool runnable(Stream_* s) {
    if (s->queue.empty()) return false;
    Operation& next = s->queue.front();
    if (next.awaits && next.awaits->done < next.awaited) return false;
    if (!s->blocking) return true;
    for (Stream_* other : streams)
        if (other != s && other->blocking && (s->legacy || other->legacy) && !other->queue.empty() &&
            other->queue.front().number < next.number)
            return false;
    return true;
}

void run_next(Stream_* s) {
    Operation next = std::move(s->queue.front());
    s->queue.pop_front();
    if (next.work) next.work();
}

unsigned random_below(unsigned n) {
    turn = turn * 1664525u + 1013904223u;
    return (turn >> 8) % n;
}

bool step() {  // any one operation that may run
    std::vector<Stream_*> ready;
    for (Stream_* s : streams)
        if (runnable(s)) ready.push_back(s);
    if (ready.empty()) return false;
    run_next(ready[random_below(ready.size())]);
    return true;
}

[[noreturn]] void fail(const std::string& why) {
    fprintf(stderr, "the emulated GPU: %s\n", why.c_str());
    abort();
}

void drain(std::function<bool()> done) {
    while (!done())
        if (!step()) fail("deadlock: a stream waits for what never comes");
}

void drain_all() {
    drain([] {
        for (Stream_* s : streams)
            if (!s->queue.empty()) return false;
        return true;
    });
}

void enqueue(Stream_* s, std::function<void()> work, std::shared_ptr<Event_> awaits = nullptr) {
    Operation o{++numbers, std::move(work), awaits, awaits ? awaits->wanted : 0};
    s->queue.push_back(std::move(o));
    if (random_below(4) == 0)
        for (unsigned n = random_below(8); n && step(); --n) {
        }
}

struct Block {
    size_t size;
    void* mapping;
    size_t mapped;
    bool device;
};
std::map<char*, Block> blocks;

Block* block_of(const void* p) {
    auto after = blocks.upper_bound((char*)p);
    if (after == blocks.begin()) return nullptr;
    --after;
    return (char*)p < after->first + std::max<size_t>(after->second.size, 1) ? &after->second : nullptr;
}

void* allocate(size_t size, bool device) {
    size_t page = sysconf(_SC_PAGESIZE), room = (size + 15) / 16 * 16, pages = (room + page - 1) / page * page;
    char *mapping, *p;
    size_t mapped = pages + page;
    if (guard && device) {
        mapping = (char*)mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(mapping + pages, page, PROT_NONE);
        p = mapping + pages - room;
    } else {
        mapped = 0;
        mapping = p = (char*)aligned_alloc(512, (size + 511) / 512 * 512 + 512);
    }
    if (device && !skip) memset(p, 0xff, size);  // NaN
    blocks[p] = {size, mapping, mapped, device};
    return p;
}

void release(void* p) {
    auto b = blocks.find((char*)p);
    if (b == blocks.end()) fail("free of what was never allocated");
    if (b->second.mapped)
        munmap(b->second.mapping, b->second.mapped);
    else {
        if (!skip) memset(p, 0xff, b->second.size);
        free(b->second.mapping);
    }
    blocks.erase(b);
}

cudaError_t copy(void* to, const void* from, size_t size, Stream_* s) {
    if (!size) return cudaSuccess;
    ++counts[COPIES];
    if (skip) return cudaSuccess;
    Block *target = block_of(to), *source = block_of(from);
    if (!target && !source) fail("a copy from the host to the host");
    if (source) {
        enqueue(s, [=] { memcpy(to, from, size); });
        if (!target) {
            ++counts[WAITS];
            drain([s] { return s->queue.empty(); });
        }
    } else {
        std::string held((const char*)from, size);  // pageable memory is copied before the call returns
        enqueue(s, [=] { memcpy(to, held.data(), size); });
    }
    return cudaSuccess;
}

}  // namespace

#define LOCK std::lock_guard<std::recursive_mutex> held_(lock)

// In place of a function of the runtime that is not here.
API void emulator_missing() { fail("CuPy asked for a function of CUDA that the emulator does not have"); }

// What the tests ask.
API void emulator_counts(unsigned long long* out) { memcpy(out, counts, sizeof counts); }
API void emulator_version(int v) { version = v; }
API void emulator_seed(unsigned seed) { turn = seed; }
// For the libraries beside this one. `now`: what the stream has to do is done before the call returns.
API void emulator_enqueue(void* stream, std::function<void()>* work, int now) {
    LOCK;
    ++counts[LAUNCHES];
    std::shared_ptr<std::function<void()>> kept(work);
    if (skip) return;
    Stream_* s = stream_of(stream);
    enqueue(s, [kept] { (*kept)(); });
    if (now) drain([s] { return s->queue.empty(); });
}

// The driver.
API CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
API CUresult cuGetErrorName(CUresult e, const char** s) {
    *s = e == CUDA_ERROR_NOT_FOUND       ? "CUDA_ERROR_NOT_FOUND"
         : e == CUDA_ERROR_INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE"
                                         : "CUDA_ERROR";
    return CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult, const char** s) {
    *s = "said by the emulated GPU";
    return CUDA_SUCCESS;
}
API CUresult cuCtxGetCurrent(CUcontext* c) {
    *c = (CUcontext)0x10;
    return CUDA_SUCCESS;
}
API CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
API CUresult cuCtxGetDevice(CUdevice* d) {
    *d = 0;
    return CUDA_SUCCESS;
}
API CUresult cuStreamGetCtx(CUstream, CUcontext* c) { return cuCtxGetCurrent(c); }
API CUresult cuModuleLoadData(CUmodule* m, const void* image) {  // the image is the path of a library
    const char* path = (const char*)image;
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) fail(std::string("cannot load ") + path + ": " + dlerror());
    *m = (CUmodule) new Module_{handle, {}};
    return CUDA_SUCCESS;
}
API CUresult cuModuleUnload(CUmodule m) { return CUDA_SUCCESS; }
API CUresult cuModuleGetFunction(CUfunction* f, CUmodule module, const char* name) {
    LOCK;
    Module_* m = (Module_*)module;
    Kernel*& k = m->kernels[name];
    if (!k) {
        void* run = dlsym(m->handle, (std::string("run_") + name).c_str());
        if (!run) return CUDA_ERROR_NOT_FOUND;
        auto sizes = (const size_t* (*)())dlsym(m->handle, (std::string("sizes_") + name).c_str());
        k = new Kernel{(decltype(k->run))run, sizes(), name};
    }
    *f = (CUfunction)k;
    return CUDA_SUCCESS;
}
API CUresult cuModuleGetGlobal_v2(CUdeviceptr* p, size_t*, CUmodule m, const char* name) {
    *p = (CUdeviceptr)(size_t)dlsym(((Module_*)m)->handle, name);
    return *p ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
API CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                            unsigned shared, CUstream stream, void** arguments, void**) {
    LOCK;
    ++counts[LAUNCHES];
    if (gy > 65535 || gz > 65535 || bx * by * bz > 1024 || gx > 0x7fffffffu || !gx || !gy || !gz || !bx)
        return CUDA_ERROR_INVALID_VALUE;
    if (skip) return CUDA_SUCCESS;
    Kernel* k = (Kernel*)f;
    size_t bytes = 0, n = 0;
    for (; k->sizes[n]; ++n) bytes += (k->sizes[n] + 15) / 16 * 16;
    if (trace) {
        fprintf(stderr, "%s <<<(%u, %u, %u), (%u, %u, %u)>>>\n", k->name.c_str(), gx, gy, gz, bx, by, bz);
        for (size_t i = 0; i < n; ++i) {
            fprintf(stderr, "  %zu bytes:", k->sizes[i]);
            for (size_t j = 0; j + 8 <= k->sizes[i]; j += 8)
                fprintf(stderr, " %llx", *(unsigned long long*)((char*)arguments[i] + j));
            fprintf(stderr, "\n");
        }
    }
    std::shared_ptr<char> kept((char*)aligned_alloc(16, bytes ? bytes : 16), free);
    std::vector<void*> pointers(n);
    for (size_t i = 0, at = 0; i < n; ++i) {
        pointers[i] = kept.get() + at;
        memcpy(pointers[i], arguments[i], k->sizes[i]);
        at += (k->sizes[i] + 15) / 16 * 16;
    }
    enqueue(stream_of(stream), [=]() mutable {
        unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
        int wrong = k->run(grid, block, shared, pointers.data());
        (void)kept;
        if (wrong) fail("some threads of " + k->name + " waited for others that had ended");
    });
    return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction) {
    *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 32;
    return CUDA_SUCCESS;
}
API CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction, int, size_t) {
    *n = 8;
    return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction, CUoccupancyB2DSize, size_t, int) {
    *grid = 132, *block = 256;
    return CUDA_SUCCESS;
}

// The runtime.
API const char* cudaGetErrorName(cudaError_t) { return "cudaErrorEmulated"; }
API const char* cudaGetErrorString(cudaError_t) { return "said by the emulated GPU"; }
API cudaError_t cudaGetLastError() { return cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int* v) {
    *v = version;
    return cudaSuccess;
}
API cudaError_t cudaRuntimeGetVersion(int* v) {
    *v = version;
    return cudaSuccess;
}
API cudaError_t cudaGetDevice(int* d) {
    *d = device;
    return cudaSuccess;
}
API cudaError_t cudaGetDeviceCount(int* n) {
    *n = gpus;
    return cudaSuccess;
}
API cudaError_t cudaSetDevice(int d) {
    if (d < 0 || d >= gpus) return cudaErrorInvalidDevice;
    device = d;
    return cudaSuccess;
}
API cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) {
    switch ((int)a) {
        case cudaDevAttrComputeCapabilityMajor:
            *v = 9;
            break;
        case cudaDevAttrComputeCapabilityMinor:
            *v = 0;
            break;
        case cudaDevAttrMultiProcessorCount:
            *v = 132;
            break;
        case cudaDevAttrMaxThreadsPerBlock:
            *v = 1024;
            break;
        case cudaDevAttrWarpSize:
            *v = 32;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlock:
            *v = 49152;
            break;
        default:
            *v = 0;
    }
    return cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "an emulated GPU");
    p->major = 9;
    p->totalGlobalMem = 1ull << 34;
    p->multiProcessorCount = p->deviceOverlap = 132;  // whose places are one in CUDA 13
    p->maxThreadsPerBlock = 1024;
    p->warpSize = 32;
    p->sharedMemPerBlock = 49152;
    return cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties_v2(cudaDeviceProp* p, int d) { return cudaGetDeviceProperties(p, d); }  // in CUDA 12
API cudaError_t cudaDeviceSynchronize() {
    LOCK;
    ++counts[WAITS];
    drain_all();
    return cudaSuccess;
}
API cudaError_t cudaDeviceCanAccessPeer(int* v, int, int) {
    *v = 0;
    return cudaSuccess;
}
API cudaError_t cudaMalloc(void** p, size_t size) {
    LOCK;
    ++counts[ALLOCATIONS];
    *p = allocate(size, true);
    return cudaSuccess;
}
API cudaError_t cudaFree(void* p) {
    LOCK;
    if (p) {
        drain_all();
        release(p);
    }
    return cudaSuccess;
}
API cudaError_t cudaHostAlloc(void** p, size_t size, unsigned) {
    LOCK;
    *p = allocate(size, false);
    return cudaSuccess;
}
API cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }
API cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
    *available = *total = 1ull << 34;
    return cudaSuccess;
}
API cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
    LOCK;
    copy(to, from, size, stream_of(nullptr));
    ++counts[WAITS];
    drain([] { return streams[0]->queue.empty(); });
    return cudaSuccess;
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t s) {
    LOCK;
    return copy(to, from, size, stream_of(s));
}
API cudaError_t cudaMemsetAsync(void* p, int value, size_t size, cudaStream_t s) {
    LOCK;
    ++counts[LAUNCHES];
    if (!skip && size) enqueue(stream_of(s), [=] { memset(p, value, size); });
    return cudaSuccess;
}
API cudaError_t cudaMemset(void* p, int value, size_t size) { return cudaMemsetAsync(p, value, size, nullptr); }
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
    LOCK;
    Block* b = block_of(p);
    memset(a, 0, sizeof *a);
    a->type = !b ? cudaMemoryTypeUnregistered : b->device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    a->device = b ? device : -2;
    a->devicePointer = b && b->device ? (void*)p : nullptr;
    a->hostPointer = b && b->device ? nullptr : (void*)p;
    return cudaSuccess;
}
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) {
    LOCK;
    stream_of(nullptr);
    auto made = new Stream_;
    made->blocking = !(flags & cudaStreamNonBlocking);
    streams.push_back(made);
    *s = (cudaStream_t)made;
    return cudaSuccess;
}
API cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithFlags(s, 0); }
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int) {
    return cudaStreamCreateWithFlags(s, flags);
}
API cudaError_t cudaStreamGetFlags(cudaStream_t s, unsigned* flags) {
    *flags = stream_of(s)->blocking ? 0 : cudaStreamNonBlocking;
    return cudaSuccess;
}
API cudaError_t cudaStreamGetPriority(cudaStream_t, int* p) {
    *p = 0;
    return cudaSuccess;
}
API cudaError_t cudaStreamDestroy(cudaStream_t s) {  // its work is still done, later; so it stays
    return cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    LOCK;
    ++counts[WAITS];
    Stream_* mine = stream_of(s);
    drain([mine] { return mine->queue.empty(); });
    return cudaSuccess;
}
API cudaError_t cudaStreamQuery(cudaStream_t s) {
    LOCK;
    Stream_* mine = stream_of(s);
    step();
    return mine->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void* data) {
    LOCK;
    enqueue(stream_of(s), [=] { f(data); });
    return cudaSuccess;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* v) {
    *v = 0;
    return cudaSuccess;
}
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
    LOCK;
    auto made = std::make_shared<Event_>();
    *e = (cudaEvent_t)made.get();
    events[*e] = made;
    return cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
API cudaError_t cudaEventDestroy(cudaEvent_t e) {
    LOCK;
    events.erase(e);
    return cudaSuccess;
}
API cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    LOCK;
    auto event = events.at(e);
    auto number = ++event->wanted;
    enqueue(stream_of(s), [=] { event->done = std::max(event->done, number); });
    return cudaSuccess;
}
API cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    LOCK;
    auto event = events.at(e);
    if (event->done < event->wanted) enqueue(stream_of(s), {}, event);
    return cudaSuccess;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    LOCK;
    ++counts[WAITS];
    auto event = events.at(e);
    drain([event] { return event->done >= event->wanted; });
    return cudaSuccess;
}
API cudaError_t cudaEventQuery(cudaEvent_t e) {
    LOCK;
    auto event = events.at(e);
    step();
    return event->done >= event->wanted ? cudaSuccess : cudaErrorNotReady;
}
API cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
    *ms = 1;
    return cudaSuccess;
}
API cudaError_t cudaProfilerStart() { return cudaSuccess; }
API cudaError_t cudaProfilerStop() { return cudaSuccess; }
API cudaError_t cudaDeviceGetPCIBusId(char* s, int n, int) {
    snprintf(s, n, "0000:00:00.0");
    return cudaSuccess;
}
