// What all kernels share: how numbers are stored, what is computed with, and sums over a block in an order that never changes.
//
// DTYPE (16, 32 or 64) says how arrays are stored, as Real; arithmetic is done in Wide, which is float at least.

#if DTYPE == 16
typedef unsigned short Real;  // the bits of a half; cuda_fp16.h does not come with every compiler
typedef float Wide;
__device__ inline Wide wide(Real x) { Wide y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x)); return y; }
__device__ inline Real real(Wide x) { Real y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }
#elif DTYPE == 32
typedef float Real;
typedef float Wide;
__device__ inline Wide wide(Real x) { return x; }
__device__ inline Real real(Wide x) { return x; }
#else
typedef double Real;
typedef double Wide;
__device__ inline Wide wide(Real x) { return x; }
__device__ inline Real real(Wide x) { return x; }
#endif

#define INFINITE Wide(__longlong_as_double(0x7ff0000000000000LL))
#define NOT_A_NUMBER Wide(__longlong_as_double(0x7ff8000000000000LL))
// At least two blocks on a multiprocessor at a time. (Without a number, nvcc may spill registers, to have more of them.)
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 2)

const int THREADS = 256;  // of every block

// The number of an element. Divisions are what such numbers cost: those of 64 bits five times as much.
#ifdef LARGE
typedef unsigned long long Index;  // where an array has 2^31 elements or more
#else
typedef unsigned Index;
#endif

// The number of this thread among all, for kernels with a thread for each element.
__device__ inline Index element() { return (Index)blockIdx.x * THREADS + threadIdx.x; }

// What the lane of the warp has whose number differs in one bit.
template <class T>
__device__ T partner(T mine, int bit) { return __shfl_xor_sync(~0u, mine, bit); }

// The values of all threads of the block, joined two and two, half of a warp's lanes with the other half, then quarters, and so
// on; then what the warps have, likewise. All threads get the result, since join(a, b) is join(b, a). (A thread may come back for
// another sum before others have left.)
template <class T, class Join>
__device__ T over_block(T mine, Join join) {
    const int LANES = 32, WARPS = THREADS / LANES;
    __shared__ T shared[WARPS];
    __syncthreads();
    for (int bit = LANES / 2; bit > 0; bit /= 2) mine = join(mine, partner(mine, bit));
    if (threadIdx.x % LANES == 0) shared[threadIdx.x / LANES] = mine;
    __syncthreads();
    mine = shared[threadIdx.x % WARPS];
    for (int bit = WARPS / 2; bit > 0; bit /= 2) mine = join(mine, partner(mine, bit));
    return mine;
}
