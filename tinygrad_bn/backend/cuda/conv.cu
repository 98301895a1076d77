// Patches of contiguous images x (N, C, h, w) for convolutions as matrix products, and their adjoint. The patches are
// (C kh kw, N oh ow): row (c, a, b), column (n, i, j) is the pixel that the kernel's element (a, b) meets in window (i, j).

struct Grid {
    int n, c, h, w, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw;
};

// A thread for each window and channel, which finds its place once and then goes down the rows.
KERNEL im2col(const Real* x, Grid of, Real* patches) {
    Index at = element(), columns = (Index)of.n * of.oh * of.ow;
    if (at >= columns * of.c) return;
    Index c = at / columns, column = at % columns, line = column / of.ow, n = line / of.oh;
    int j = column % of.ow, i = line % of.oh;
    const Real* image = x + (n * of.c + c) * of.h * of.w;
    Real* patch = patches + c * of.kh * of.kw * columns + column;
    for (int a = 0; a < of.kh; ++a)
        for (int b = 0; b < of.kw; ++b, patch += columns) {
            int y = i * of.sh - of.ph + a * of.dh, z = j * of.sw - of.pw + b * of.dw;
            bool inside = y >= 0 && y < of.h && z >= 0 && z < of.w;
            *patch = inside ? image[(Index)y * of.w + z] : real(0);
        }
}

// The windows along an axis that may have the pixel `at` (the padding counted) in them: from `first` to `last`.
struct Covering {
    int first, last;
    __device__ Covering(int at, int k, int s, int d, int count) : last(min(at / s, count - 1)) {
        int span = (k - 1) * d + 1;
        first = at < span ? 0 : (at - span) / s + 1;
    }
};

// The kernel's element that lies so far from its first; -1 if there is none.
__device__ int element_at(int distance, int dilation) {
    if (dilation == 1) return distance;  // (a division less)
    return distance % dilation ? -1 : distance / dilation;
}

// A thread for each pixel, which adds up what belongs to it, always in the same order.
KERNEL col2im(const Real* patches, Grid of, Real* x) {
    Index at = element(), columns = (Index)of.n * of.oh * of.ow;
    if (at >= (Index)of.n * of.c * of.h * of.w) return;
    Index line = at / of.w, plane = line / of.h, n = plane / of.c, c = plane % of.c;
    int z = at % of.w + of.pw, y = line % of.h + of.ph;
    Covering rows(y, of.kh, of.sh, of.dh, of.oh), across(z, of.kw, of.sw, of.dw, of.ow);
    const Real* sample = patches + c * of.kh * of.kw * columns + n * of.oh * of.ow;
    Wide total = 0;
    for (int i = rows.first; i <= rows.last; ++i) {
        int a = element_at(y - i * of.sh, of.dh);
        if (a < 0) continue;
        for (int j = across.first; j <= across.last; ++j) {
            int b = element_at(z - j * of.sw, of.dw);
            if (b >= 0) total += wide(sample[((Index)a * of.kw + b) * columns + (Index)i * of.ow + j]);
        }
    }
    x[at] = real(total);
}
