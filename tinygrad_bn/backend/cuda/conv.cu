// Patches of contiguous images x (N, C, h, w) for convolutions as matrix products, and their adjoint. The patches are
// (N, C kh kw, oh ow): row (c, a, b), column (i, j) is the pixel that the kernel's element (a, b) meets in window (i, j).

struct Grid {
    int n, c, h, w, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw;
};

// A thread for each element of the patches.
KERNEL im2col(const Real* x, Grid of, Real* patches) {
    Index at = element();
    if (at >= (Index)of.n * of.c * of.kh * of.kw * of.oh * of.ow) return;
    Index line = at / of.ow, row = line / of.oh, window = row / of.kw, plane = window / of.kh;
    int j = at % of.ow, i = line % of.oh, b = row % of.kw, a = window % of.kh;
    int y = i * of.sh - of.ph + a * of.dh, z = j * of.sw - of.pw + b * of.dw;
    bool inside = y >= 0 && y < of.h && z >= 0 && z < of.w;
    patches[at] = inside ? x[(plane * of.h + y) * of.w + z] : real(0);
}

// A thread for each pixel, which adds up what belongs to it, always in the same order.
KERNEL col2im(const Real* patches, Grid of, Real* x) {
    Index at = element();
    if (at >= (Index)of.n * of.c * of.h * of.w) return;
    Index line = at / of.w, plane = line / of.h;
    int z = at % of.w, y = line % of.h;
    Wide total = 0;
    for (int a = 0; a < of.kh; ++a) {
        int down = y + of.ph - a * of.dh, i = down / of.sh;
        if (down < 0 || i * of.sh != down || i >= of.oh) continue;
        for (int b = 0; b < of.kw; ++b) {
            int right = z + of.pw - b * of.dw, j = right / of.sw;
            if (right < 0 || j * of.sw != right || j >= of.ow) continue;
            total += wide(patches[(((plane * of.kh + a) * of.kw + b) * of.oh + i) * of.ow + j]);
        }
    }
    x[at] = real(total);
}
