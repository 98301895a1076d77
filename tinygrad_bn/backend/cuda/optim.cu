// An optimizer's step over flat weights and state, in place. The gradient is in as many arrays as there are parameters, and is
// read where they lie: their addresses and where each begins among the weights are an argument of the kernel.

const int PIECES = 128;

struct Gradient {
    long long count, stop;             // of pieces; and where the last of them ends
    long long starts[PIECES];
    const Real* addresses[PIECES];

    __device__ Wide at(long long i) const {
        int low = 0, high = (int)count - 1;
        while (low < high) {  // the last piece that begins at i or before
            int middle = (low + high + 1) / 2;
            if (starts[middle] <= i) low = middle;
            else high = middle - 1;
        }
        return wide(addresses[low][i - starts[low]]);
    }
};

KERNEL sgd(
    Real* weights, Gradient grads, Real* buffer, long long first_step, double lr, double momentum, double dampening,
    double weight_decay, long long nesterov
) {
    Index i = grads.starts[0] + element();
    if (i >= grads.stop) return;
    Wide g = grads.at(i), w = wide(weights[i]);
    if (weight_decay != 0) g += Wide(weight_decay) * w;  // asked, since zero times an infinite weight is NaN
    if (momentum != 0) {
        Wide b = first_step ? g : Wide(momentum) * wide(buffer[i]) + Wide(1 - dampening) * g;
        buffer[i] = real(b);
        g = nesterov ? g + Wide(momentum) * b : b;
    }
    weights[i] = real(w - Wide(lr) * g);
}

// `decay` of the gradient; and `keep`, the share of the weights that decoupled decay leaves.
KERNEL adam(
    Real* weights, Gradient grads, Real* mean, Real* square, double beta1, double beta2, double scale, double root, double eps,
    double decay, double keep
) {
    Index i = grads.starts[0] + element();
    if (i >= grads.stop) return;
    Wide g = grads.at(i), w = wide(weights[i]);
    if (decay != 0) g += Wide(decay) * w;
    Wide m = Wide(beta1) * wide(mean[i]) + Wide(1 - beta1) * g;
    Wide v = Wide(beta2) * wide(square[i]) + Wide(1 - beta2) * (g * g);
    mean[i] = real(m);
    square[i] = real(v);
    weights[i] = real(Wide(keep) * w - Wide(scale) * (m / (sqrt(v) * Wide(root) + Wide(eps))));
}
