// Elementwise functions that take more than one pass in array code: a thread for each element.

KERNEL relu(const Real* x, long long n, Real* y) {
    Index i = element();
    if (i < n) y[i] = wide(x[i]) < 0 ? real(0) : x[i];  // so that NaN stays
}

KERNEL relu_backward(const Real* g, const Real* y, long long n, Real* dx) {
    Index i = element();
    if (i < n) dx[i] = real(wide(g[i]) * (wide(y[i]) > 0 ? 1 : 0));
}

KERNEL sigmoid(const Real* x, long long n, Real* y) {
    Index i = element();
    if (i < n) y[i] = real(Wide(0.5) * tanh(Wide(0.5) * wide(x[i])) + Wide(0.5));
}

KERNEL sigmoid_backward(const Real* g, const Real* y, long long n, Real* dx) {
    Index i = element();
    if (i < n) dx[i] = real(wide(g[i]) * wide(y[i]) * (1 - wide(y[i])));
}
