// Softmax cross-entropy of logits x (N, C): a block for each example, whose threads take every THREADS-th class.

__device__ Wide larger(Wide a, Wide b) { return a > b ? a : b; }  // a NaN may go missing here: the sum has it
__device__ Wide plus(Wide a, Wide b) { return a + b; }

// The largest logit, and the sum of e ** (x - largest).
struct Softmax {
    Wide largest, total;
    __device__ Softmax(const Real* x, long long classes) : largest(-INFINITE), total(0) {
        for (long long c = threadIdx.x; c < classes; c += THREADS) largest = larger(largest, wide(x[c]));
        largest = over_block(largest, larger);
        for (long long c = threadIdx.x; c < classes; c += THREADS) total += exp(wide(x[c]) - largest);
        total = over_block(total, plus);
    }
};

// log(sum(e ** x)) less the mean logit of the target: 1 - smoothing on the label, and smoothing / C everywhere.
KERNEL cross_entropy(const Real* x, const long long* labels, long long classes, double smoothing, Real* losses) {
    const Real* row = x + blockIdx.x * classes;
    long long label = labels[blockIdx.x];
    Softmax softmax(row, classes);
    Wide mean = 0;
    if (smoothing != 0) {
        for (long long c = threadIdx.x; c < classes; c += THREADS) mean += wide(row[c]) - softmax.largest;
        mean = over_block(mean, plus) / classes;
    }
    if (threadIdx.x != 0) return;
    bool inside = label >= 0 && label < classes;
    Wide chosen = inside ? wide(row[label]) - softmax.largest : NOT_A_NUMBER;
    if (smoothing != 0) chosen = chosen * Wide(1 - smoothing) + mean * Wide(smoothing);
    losses[blockIdx.x] = real(log(softmax.total) - chosen);
}

// g (softmax(x) - target)
KERNEL cross_entropy_backward(
    const Real* g, const Real* x, const long long* labels, long long classes, double smoothing, Real* dx
) {
    const Real* row = x + blockIdx.x * classes;
    long long label = labels[blockIdx.x];
    Softmax softmax(row, classes);
    Wide scale = wide(g[blockIdx.x]), everywhere = smoothing / classes;
    if (label < 0 || label >= classes) everywhere = NOT_A_NUMBER;
    for (long long c = threadIdx.x; c < classes; c += THREADS) {
        Wide target = everywhere + (c == label ? Wide(1 - smoothing) : 0);
        dx[blockIdx.x * classes + c] = real((exp(wide(row[c]) - softmax.largest) / softmax.total - target) * scale);
    }
}
