// The mean of a small array, as that of the losses of a batch, and its gradient: each by itself would be two launches.

__device__ double plus(double a, double b) { return a + b; }

// One block, whose thread t adds up elements t, t + THREADS, t + 2 THREADS ...
KERNEL mean_all(const Real* x, long long n, Real* y) {
    double mine = 0;
    for (long long i = threadIdx.x; i < n; i += THREADS) mine += wide(x[i]);
    mine = over_block(mine, plus);
    if (threadIdx.x == 0) y[0] = real(mine / n);
}

// The same number everywhere: g / count.
KERNEL spread(const Real* g, long long n, double count, Real* out) {
    Index i = element();
    if (i < n) out[i] = real(wide(g[0]) / Wide(count));
}
