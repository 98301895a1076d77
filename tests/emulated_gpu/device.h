// Just enough of CUDA for a kernel to run on a CPU: blocks one after another, the threads of a block as fibers that take turns,
// each until it ends or waits for the others. So the source itself is tested, not a likeness; how fast it is, it does not tell.
#pragma once

#include <assert.h>
#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>
#include <vector>

using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;
using std::signbit;

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
    unsigned x, y, z;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;
static const int warpSize = 32;

// Numbers as bits, and halves.
template <class To, class From>
static inline To bits_as(From x) {
    To y;
    static_assert(sizeof x == sizeof y, "");
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline double __longlong_as_double(long long x) { return bits_as<double>(x); }
static inline long long __double_as_longlong(double x) { return bits_as<long long>(x); }
static inline float __int_as_float(int x) { return bits_as<float>(x); }
static inline int __float_as_int(float x) { return bits_as<int>(x); }
static inline float __uint_as_float(unsigned x) { return bits_as<float>(x); }
static inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
static inline float __half2float(unsigned short x) { return _cvtsh_ss(x); }
static inline unsigned short __float2half_rn(float x) { return _cvtss_sh(x, 0); }
struct __half_raw {
    unsigned short x;
};
struct half {
    unsigned short bits;
    half() {}
    half(float v) : bits(__float2half_rn(v)) {}
    explicit half(double v) : bits(__float2half_rn((float)v)) {}
    template <class I, class = typename std::enable_if<std::is_integral<I>::value>::type>
    explicit half(I v) : bits(__float2half_rn((float)v)) {}
    explicit half(const __half_raw& v) : bits(v.x) {}
    operator float() const { return __half2float(bits); }
    operator __half_raw() const { return {bits}; }
};
static inline unsigned short __half_as_ushort(half x) { return x.bits; }
static inline half __ushort_as_half(unsigned short x) { return half(__half_raw{x}); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}
static inline long long __mul64hi(long long a, long long b) { return (__int128)a * b >> 64; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline double rsqrt(double x) { return 1 / sqrt(x); }
static inline float rsqrt(float x) { return 1 / sqrtf(x); }
template <class T>
static inline T __ldg(const T* p) {
    return *p;
}

// Atomics: fibers take turns only where they wait, so nothing comes between.
#define ATOMIC(name, result)                                                       \
    template <class T>                                                             \
    static inline T name##_(T* p, T v) {                                           \
        T old = *p;                                                                \
        *p = result;                                                               \
        return old;                                                                \
    }                                                                              \
    static inline int name(int* p, int v) { return name##_(p, v); }                \
    static inline unsigned name(unsigned* p, unsigned v) { return name##_(p, v); } \
    static inline unsigned long long name(unsigned long long* p, unsigned long long v) { return name##_(p, v); }
ATOMIC(atomicAdd, old + v)
ATOMIC(atomicSub, old - v)
ATOMIC(atomicMax, std::max(old, v))
ATOMIC(atomicMin, std::min(old, v))
ATOMIC(atomicExch, v)
ATOMIC(atomicOr, (old | v))
ATOMIC(atomicAnd, (old & v))
static inline long long atomicMax(long long* p, long long v) { return atomicMax_(p, v); }
static inline long long atomicMin(long long* p, long long v) { return atomicMin_(p, v); }
static inline float atomicAdd(float* p, float v) { return atomicAdd_(p, v); }
static inline double atomicAdd(double* p, double v) { return atomicAdd_(p, v); }
template <class T>
static inline T atomicCAS(T* p, T compare, T v) {
    T old = *p;
    if (old == compare) *p = v;
    return old;
}

// Fibers: what a call keeps (six registers), on stacks of their own.
extern "C" void fiber_switch(void** from, void* to);
asm(R"(
.text
.local fiber_switch
fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

enum State { READY, AT_BLOCK, AT_WARP, ENDED };
struct Fiber {
    void* at;
    State state;
    dim3 index;
    unsigned long long slot;  // what it shows to its warp
    std::vector<char> stack;
};
static std::vector<Fiber> fibers;
static void* scheduler;
static unsigned current;
static void (*body)(void*);
static void* body_data;

alignas(16) static char dynamic_shared[1 << 16];  // of which a launch says how much it wants

static void leave(State state) {
    unsigned me = current;
    fibers[me].state = state;
    fiber_switch(&fibers[me].at, scheduler);
    current = me;
    threadIdx = fibers[me].index;
}
static void __syncthreads() { leave(AT_BLOCK); }
static void __syncwarp(unsigned = ~0u) { leave(AT_WARP); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

// A warp's threads show each other a value.
template <class T>
static T of_lane(T mine, unsigned lane) {
    unsigned warp = current / 32 * 32;
    fibers[current].slot = 0;
    memcpy(&fibers[current].slot, &mine, sizeof mine);
    __syncwarp();
    T other = mine;
    if (lane < 32 && warp + lane < fibers.size()) memcpy(&other, &fibers[warp + lane].slot, sizeof other);
    __syncwarp();
    return other;
}
template <class T>
static T __shfl_sync(unsigned, T x, int lane, int = 32) {
    return of_lane(x, lane % 32);
}
template <class T>
static T __shfl_xor_sync(unsigned, T x, int mask, int = 32) {
    return of_lane(x, current % 32 ^ mask);
}
template <class T>
static T __shfl_down_sync(unsigned, T x, unsigned by, int = 32) {
    return of_lane(x, current % 32 + by);
}
template <class T>
static T __shfl_up_sync(unsigned, T x, unsigned by, int = 32) {
    return of_lane(x, current % 32 - by);
}

static void fiber_enter() {
    body(body_data);
    leave(ENDED);
    __builtin_trap();
}

static void start(Fiber& f, dim3 index) {
    f.stack.resize(1 << 14);
    f.state = READY;
    f.index = index;
    void** top = (void**)(((size_t)f.stack.data() + f.stack.size()) & ~(size_t)15);
    *--top = nullptr;
    *--top = (void*)fiber_enter;  // where the first switch returns to
    f.at = top - 6;
}

static unsigned turn = 1;
static unsigned drawn() { return (turn = turn * 1664525u + 1013904223u) >> 8; }

// Runs the threads of one warp, as far as it gets by itself, or of some, or of all, as drawn for each block: so that none may
// count on another. Each runs until it waits or ends.
static void run_some(unsigned threads, unsigned mode) {
    static unsigned favourite;
    unsigned warps = (threads + 31) / 32, some = mode == 0 ? ~0u : drawn(), stride = 2 * drawn() + 1, shift = drawn();
    if (mode == 1) {
        bool ready = false;
        for (unsigned t = favourite % warps * 32; t < std::min(threads, favourite % warps * 32 + 32); ++t)
            ready |= fibers[t].state == READY;
        if (!ready) favourite = drawn();
    }
    while (std::__gcd(stride, threads) != 1) ++stride;
    for (unsigned i = 0; i < threads; ++i) {
        unsigned one = ((unsigned long long)i * stride + shift) % threads, warp = one / 32;
        if (fibers[one].state != READY || !(mode == 1 ? warp == favourite % warps : some >> warp % 24 & 1)) continue;
        current = one;
        threadIdx = fibers[one].index;
        fiber_switch(&scheduler, fibers[one].at);
    }
}

// Lets those go on whose warp, or block, has all come. Returns whether anybody goes on; `wrong` is set if some can never come.
static bool release(unsigned threads, bool& wrong) {
    unsigned count[4] = {};
    for (unsigned w = 0; w < threads; w += 32) {
        unsigned end = std::min(w + 32, threads), here[4] = {};
        for (unsigned t = w; t < end; ++t) ++here[fibers[t].state];
        if (here[AT_WARP] && !here[READY] && !here[AT_BLOCK])
            for (unsigned t = w; t < end; ++t)
                if (fibers[t].state == AT_WARP) fibers[t].state = READY, ++here[READY], --here[AT_WARP];
        for (int state = 0; state < 4; ++state) count[state] += here[state];
    }
    if (count[READY]) return true;
    if (!count[AT_BLOCK] && !count[AT_WARP]) return false;
    wrong |= count[ENDED] > 0 || count[AT_WARP] > 0;  // (or of a warp some wait for the block)
    for (Fiber& f : fibers)
        if (f.state != ENDED) f.state = READY;
    return true;
}

// Returns how many blocks had threads that waited for others that had ended: on a GPU that is an error.
static int run_blocks(const unsigned* grid, const unsigned* block, void (*kernel)(void*), void* data, bool waits) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    body = kernel, body_data = data;
    unsigned threads = block[0] * block[1] * block[2];
    int count = 0;
    if (waits) fibers.resize(threads);
    for (unsigned z = 0; z < grid[2]; ++z)
        for (unsigned y = 0; y < grid[1]; ++y)
            for (unsigned x = 0; x < grid[0]; ++x) {
                blockIdx = {x, y, z};
                unsigned t = 0;
                for (unsigned k = 0; k < block[2]; ++k)
                    for (unsigned j = 0; j < block[1]; ++j)
                        for (unsigned i = 0; i < block[0]; ++i) {
                            threadIdx = {i, j, k};
                            if (waits)
                                start(fibers[t++], threadIdx);
                            else
                                kernel(data);
                        }
                if (!waits) continue;
                bool wrong = false;
                unsigned mode = drawn() % 3;
                do run_some(threads, mode);
                while (release(threads, wrong));
                count += wrong;
            }
    return count;
}

// A kernel of any signature, called with the addresses of its arguments.
template <class... A, size_t... I>
static inline void call_with(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(typename std::remove_cv<typename std::remove_reference<A>::type>::type*)arguments[I]...);
}
template <auto kernel>
struct Caller;
template <class... A, void (*kernel)(A...)>
struct Caller<kernel> {
    static void call(void* arguments) { call_with(kernel, (void**)arguments, std::index_sequence_for<A...>{}); }
    static inline const size_t sizes[sizeof...(A) + 1] = {sizeof(A)..., 0};
};
// (CuPy's own kernels do that; on a GPU those that have ended count as waiting.)
#define ENTRY(kernel, waits, strict)                                                                     \
    extern "C" int run_##kernel(const unsigned* grid, const unsigned* block, size_t, void** arguments) { \
        return run_blocks(grid, block, Caller<&kernel>::call, arguments, waits) && strict;               \
    }                                                                                                    \
    extern "C" const size_t* sizes_##kernel() { return Caller<&kernel>::sizes; }
