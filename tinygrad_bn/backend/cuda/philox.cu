// Dropout by Philox4x64-10 (Salmon et al. 2011): thread b makes block b + 1 of the key's numbers, those of four elements.

typedef unsigned long long Word;

KERNEL dropout(const Real* x, long long n, double scale, Word threshold, Word key, Real* y) {
    Index first = element() * 4;
    if (first >= n) return;
    Word c[4] = {Word(first / 4 + 1), 0, 0, 0}, k0 = key, k1 = 0;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const Word a = 0xD2E7470EE14C6C93ULL, b = 0xCA5A826395121157ULL;
        Word high0 = __umul64hi(a, c[0]), low0 = a * c[0], high1 = __umul64hi(b, c[2]), low1 = b * c[2];
        c[0] = high1 ^ c[1] ^ k0;
        c[1] = low1;
        c[2] = high0 ^ c[3] ^ k1;
        c[3] = low0;
        k0 += 0x9E3779B97F4A7C15ULL;
        k1 += 0xBB67AE8584CAA73BULL;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
        if (first + j < n) y[first + j] = c[j] >> 11 >= threshold ? real(wide(x[first + j]) * Wide(scale)) : real(0);
}
