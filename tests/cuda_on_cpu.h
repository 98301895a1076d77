// Just enough of CUDA for a kernel to run on a CPU: blocks one after another, the threads of a block as fibers that take turns,
// each until it ends or waits for the others. So the source itself is tested, not a likeness; how fast it is, it does not tell.

#include <math.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

using std::isfinite;
using std::max;
using std::min;

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct Dim {
    int x, y, z;
};
static Dim threadIdx, blockIdx, gridDim;

static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned __int128)a * b >> 64; }

static double __longlong_as_double(long long bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool ended;
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static std::function<void()> body;
static int waiting;  // how many have come to the barrier

static void __syncthreads() {
    ++waiting;
    swapcontext(&fibers[threadIdx.x].context, &scheduler);
}

static void enter() {
    body();
    fibers[threadIdx.x].ended = true;
    swapcontext(&fibers[threadIdx.x].context, &scheduler);
}

// Returns how often some threads of a block waited where others had ended: on a GPU that is an error.
static int run_kernel(int grid_x, int grid_y, int threads, std::function<void()> kernel) {
    body = kernel;
    gridDim = {grid_x, grid_y, 1};
    fibers.resize(threads);
    int wrong = 0;
    unsigned turn = 1;
    for (int y = 0; y < grid_y; ++y)
        for (int x = 0; x < grid_x; ++x) {
            blockIdx = {x, y, 0};
            for (Fiber& f : fibers) {
                f.stack.resize(1 << 15);
                f.ended = false;
                getcontext(&f.context);
                f.context.uc_stack.ss_sp = f.stack.data();
                f.context.uc_stack.ss_size = f.stack.size();
                makecontext(&f.context, enter, 0);
            }
            for (int alive = threads; alive > 0;) {
                waiting = 0;
                turn = turn * 1664525u + 1013904223u;
                for (int i = 0; i < threads; ++i) {  // in another order each time, so that none can be counted on
                    int t = (int)((i * (2 * (turn >> 8) + 1) + (turn >> 16)) % threads);
                    if (fibers[t].ended) continue;
                    threadIdx = {t, 0, 0};
                    swapcontext(&scheduler, &fibers[t].context);
                    alive -= fibers[t].ended;
                }
                if (waiting && waiting != threads) ++wrong;
            }
        }
    return wrong;
}
