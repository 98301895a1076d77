// Elementwise functions that take more than one pass in array code: a block for EACH * THREADS neighbours.

const int EACH = 4;  // elements of a thread, THREADS apart, all read before one is written: so many reads are under way at once

// out = f(a), or f(a, b), of each element.
template <class F>
__device__ void map(const Real* a, long long n, Real* out, F f) {
    Index first = (Index)blockIdx.x * (EACH * THREADS) + threadIdx.x;
    Wide value[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k) value[k] = first + k * THREADS < n ? wide(a[first + k * THREADS]) : 0;
#pragma unroll
    for (int k = 0; k < EACH; ++k)
        if (first + k * THREADS < n) out[first + k * THREADS] = real(f(value[k]));
}

template <class F>
__device__ void map(const Real* a, const Real* b, long long n, Real* out, F f) {
    Index first = (Index)blockIdx.x * (EACH * THREADS) + threadIdx.x;
    Wide one[EACH], other[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        bool there = first + k * THREADS < n;
        one[k] = there ? wide(a[first + k * THREADS]) : 0;
        other[k] = there ? wide(b[first + k * THREADS]) : 0;
    }
#pragma unroll
    for (int k = 0; k < EACH; ++k)
        if (first + k * THREADS < n) out[first + k * THREADS] = real(f(one[k], other[k]));
}

KERNEL relu(const Real* x, long long n, Real* y) {
    map(x, n, y, [](Wide x) { return x < 0 ? 0 : x; });  // so that NaN stays
}

KERNEL relu_backward(const Real* g, const Real* y, long long n, Real* dx) {
    map(g, y, n, dx, [](Wide g, Wide y) { return g * (y > 0 ? 1 : 0); });
}

// y of shape (N, C, S), S the pixels of a plane, and b of shape (C,): y += b, in place.
KERNEL add_bias(const Real* b, long long n, long long channels, long long size, Real* y) {
    Index first = (Index)blockIdx.x * (EACH * THREADS) + threadIdx.x;
    Wide value[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        Index i = first + k * THREADS;
        if (i < n) value[k] = wide(y[i]) + wide(b[i / (Index)size % (Index)channels]);
    }
#pragma unroll
    for (int k = 0; k < EACH; ++k)
        if (first + k * THREADS < n) y[first + k * THREADS] = real(value[k]);
}

KERNEL sigmoid(const Real* x, long long n, Real* y) {
    map(x, n, y, [](Wide x) { return Wide(0.5) * tanh(Wide(0.5) * x) + Wide(0.5); });
}

KERNEL sigmoid_backward(const Real* g, const Real* y, long long n, Real* dx) {
    map(g, y, n, dx, [](Wide g, Wide y) { return g * y * (1 - y); });
}
