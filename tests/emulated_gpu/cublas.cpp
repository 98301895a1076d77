// What CuPy asks of cuBLAS, by plain loops, done when its turn in the stream comes. Matrices are column-major.
#include <dlfcn.h>
#include <immintrin.h>

#include <functional>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))
typedef int Status;
typedef long long L;
struct Handle_ {
    void* stream = nullptr;
    int math = 0, pointer = 0;
};
typedef Handle_* H;
enum { R32 = 0, R64 = 1, R16 = 2, INVALID = 7, UNSUPPORTED = 15 };

static Status later(H h, std::function<void()> work) {
    typedef void Enqueue(void*, std::function<void()>*, int);
    static Enqueue* enqueue = (Enqueue*)dlsym(RTLD_DEFAULT, "emulator_enqueue");
    enqueue(h->stream, new std::function<void()>(std::move(work)), 0);
    return 0;
}

struct Half {
    unsigned short bits;
    operator float() const { return _cvtsh_ss(bits); }
    Half& operator=(float x) {
        bits = _cvtss_sh(x, 0);
        return *this;
    }
};

// Column-major: C[m, n] = alpha op(A) op(B) + beta C.
template <class S, class T, class C>
static void product(int ta, int tb, int m, int n, int k, T alpha, const S* a, int lda, const S* b, int ldb, T beta, C* c,
                    int ldc) {
    std::vector<T> left((size_t)m * k), column(m);
    for (int p = 0; p < k; ++p)
        for (int i = 0; i < m; ++i) left[(size_t)p * m + i] = a[ta ? (size_t)i * lda + p : (size_t)p * lda + i];
    for (int j = 0; j < n; ++j) {
        std::fill(column.begin(), column.end(), T(0));
        T* out = column.data();
        for (int p = 0; p < k; ++p) {
            T x = b[tb ? (size_t)p * ldb + j : (size_t)j * ldb + p];
            const T* row = &left[(size_t)p * m];
            for (int i = 0; i < m; ++i) out[i] += row[i] * x;
        }
        for (int i = 0; i < m; ++i) {
            C& to = c[(size_t)j * ldc + i];
            to = alpha * out[i] + (beta != 0 ? beta * (T)to : T(0));
        }
    }
}

static void one(int ta, int tb, int m, int n, int k, double alpha, const void* a, int lda, const void* b, int ldb, double beta,
                void* c, int ldc, int from, int to) {
    if (from == R32)
        product(ta, tb, m, n, k, (float)alpha, (const float*)a, lda, (const float*)b, ldb, (float)beta, (float*)c, ldc);
    else if (from == R64)
        product(ta, tb, m, n, k, alpha, (const double*)a, lda, (const double*)b, ldb, beta, (double*)c, ldc);
    else if (to == R16)
        product(ta, tb, m, n, k, (float)alpha, (const Half*)a, lda, (const Half*)b, ldb, (float)beta, (Half*)c, ldc);
    else
        product(ta, tb, m, n, k, (float)alpha, (const Half*)a, lda, (const Half*)b, ldb, (float)beta, (float*)c, ldc);
}

static Status gemm(H h, int ta, int tb, int m, int n, int k, double alpha, const void* a, int ka, int lda, const void* b,
                   int kb, int ldb, double beta, void* c, int kc, int ldc, L sa = 0, L sb = 0, L sc = 0, int batches = 1) {
    if (m < 0 || n < 0 || k < 0 || lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return INVALID;
    if (ka != kb || ka > R16 || (kc != ka && !(ka == R16 && kc == R32))) return UNSUPPORTED;
    auto size = [](int kind) { return kind == R32 ? 4 : kind == R64 ? 8 : 2; };
    return later(h, [=] {
        for (int i = 0; i < batches; ++i)
            one(ta, tb, m, n, k, alpha, (const char*)a + i * sa * size(ka), lda, (const char*)b + i * sb * size(kb), ldb, beta,
                (char*)c + i * sc * size(kc), ldc, ka, kc);
    });
}
static double number(const void* p, int compute) {
    return compute == 1 || compute == 70 || compute == 71 ? *(const double*)p : *(const float*)p;
}

API Status cublasCreate_v2(H* h) { return *h = new Handle_, 0; }
API Status cublasDestroy_v2(H h) { return delete h, 0; }
API Status cublasGetVersion_v2(H, int* v) { return *v = 120900, 0; }
API Status cublasSetStream_v2(H h, void* s) { return h->stream = s, 0; }
API Status cublasGetStream_v2(H h, void** s) { return *s = h->stream, 0; }
API Status cublasSetMathMode(H h, int m) { return h->math = m, 0; }
API Status cublasGetMathMode(H h, int* m) { return *m = h->math, 0; }
API Status cublasSetPointerMode_v2(H h, int m) { return h->pointer = m, 0; }
API Status cublasGetPointerMode_v2(H h, int* m) { return *m = h->pointer, 0; }
API Status cublasSgemm_v2(H h, int ta, int tb, int m, int n, int k, const float* alpha, const void* a, int lda, const void* b,
                          int ldb, const float* beta, void* c, int ldc) {
    return gemm(h, ta, tb, m, n, k, *alpha, a, R32, lda, b, R32, ldb, *beta, c, R32, ldc);
}
API Status cublasDgemm_v2(H h, int ta, int tb, int m, int n, int k, const double* alpha, const void* a, int lda, const void* b,
                          int ldb, const double* beta, void* c, int ldc) {
    return gemm(h, ta, tb, m, n, k, *alpha, a, R64, lda, b, R64, ldb, *beta, c, R64, ldc);
}
API Status cublasSgemmEx(H h, int ta, int tb, int m, int n, int k, const float* alpha, const void* a, int ka, int lda,
                         const void* b, int kb, int ldb, const float* beta, void* c, int kc, int ldc) {
    return gemm(h, ta, tb, m, n, k, *alpha, a, ka, lda, b, kb, ldb, *beta, c, kc, ldc);
}
API Status cublasGemmEx(H h, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int ka, int lda,
                        const void* b, int kb, int ldb, const void* beta, void* c, int kc, int ldc, int compute, int) {
    return gemm(h, ta, tb, m, n, k, number(alpha, compute), a, ka, lda, b, kb, ldb, number(beta, compute), c, kc, ldc);
}
API Status cublasGemmStridedBatchedEx(H h, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int ka,
                                      int lda, L sa, const void* b, int kb, int ldb, L sb, const void* beta, void* c, int kc,
                                      int ldc, L sc, int batches, int compute, int) {
    return gemm(h, ta, tb, m, n, k, number(alpha, compute), a, ka, lda, b, kb, ldb, number(beta, compute), c, kc, ldc, sa, sb,
                sc, batches);
}
template <class T>
static Status batched(H h, int ta, int tb, int m, int n, int k, const T* alpha, const T* const* a, int lda, const T* const* b,
                      int ldb, const T* beta, T* const* c, int ldc, int batches) {
    T x = *alpha, y = *beta;
    return later(h, [=] {
        for (int i = 0; i < batches; ++i) product(ta, tb, m, n, k, x, a[i], lda, b[i], ldb, y, c[i], ldc);
    });
}
API Status cublasSgemmBatched(H h, int ta, int tb, int m, int n, int k, const float* alpha, const float* const* a, int lda,
                              const float* const* b, int ldb, const float* beta, float* const* c, int ldc, int batches) {
    return batched(h, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, batches);
}
API Status cublasDgemmBatched(H h, int ta, int tb, int m, int n, int k, const double* alpha, const double* const* a, int lda,
                              const double* const* b, int ldb, const double* beta, double* const* c, int ldc, int batches) {
    return batched(h, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, batches);
}
