// Pooling of contiguous planes: x has (N C) planes of h x w pixels, y as many of oh x ow windows of kh x kw. A thread for each
// result, which gathers what belongs to it, so that sums have one order. What lies in the padding is -inf to a maximum, 0 to a mean.

struct Windows {
    int planes, h, w, oh, ow, kh, kw, sh, sw, ph, pw;
};

// Where element i lies: the number of its plane's first, its row and its column.
struct Spot {
    Index plane;
    int row, column;
    __device__ Spot(Index i, int rows, int columns) : plane(i / columns / rows), row(i / columns % rows), column(i % columns) {}
};

// The windows along an axis that have the pixel `at` (the padding counted) in them: from `first` to `last`.
struct Covering {
    int first, last;
    __device__ Covering(int at, int k, int s, int count) : first(at < k ? 0 : (at - k) / s + 1), last(min(at / s, count - 1)) {}
};

KERNEL max_pool2d(const Real* x, Windows of, Real* y, Place* place) {
    Index i = element();
    if (i >= (Index)of.planes * of.oh * of.ow) return;
    Spot at(i, of.oh, of.ow);
    const Real* plane = x + at.plane * of.h * of.w;
    int number = 0, best_number = 0;
    Wide best = -INFINITE;
    bool nan = false;
    for (int m = 0, row = at.row * of.sh - of.ph; m < of.kh; ++m, ++row)
        for (int k = 0, column = at.column * of.sw - of.pw; k < of.kw; ++k, ++column, ++number) {
            if (row < 0 || row >= of.h || column < 0 || column >= of.w) continue;
            Wide v = wide(plane[row * of.w + column]);
            nan |= v != v;
            if (v > best) {
                best = v;
                best_number = number;
            }
        }
    y[i] = real(nan ? NOT_A_NUMBER : best);
    place[i] = nan ? 0 : best_number;
}

KERNEL max_pool2d_scatter(const Real* g, const Place* place, Windows of, Real* dx) {
    Index i = element();
    if (i >= (Index)of.planes * of.h * of.w) return;
    Spot at(i, of.h, of.w);
    int row = at.row + of.ph, column = at.column + of.pw;
    Covering rows(row, of.kh, of.sh, of.oh), columns(column, of.kw, of.sw, of.ow);
    Wide total = 0;
    for (int a = rows.first; a <= rows.last; ++a)
        for (int b = columns.first; b <= columns.last; ++b) {
            Index window = (at.plane * of.oh + a) * of.ow + b;
            if (place[window] == (row - a * of.sh) * of.kw + column - b * of.sw) total += wide(g[window]);
        }
    dx[i] = real(total);
}

KERNEL max_pool2d_gather(const Real* x, const Place* place, Windows of, Real* y) {
    Index i = element();
    if (i >= (Index)of.planes * of.oh * of.ow) return;
    Spot at(i, of.oh, of.ow);
    int row = at.row * of.sh - of.ph + place[i] / of.kw, column = at.column * of.sw - of.pw + place[i] % of.kw;
    bool inside = row >= 0 && row < of.h && column >= 0 && column < of.w;
    y[i] = inside ? x[(at.plane * of.h + row) * of.w + column] : real(0);
}

KERNEL avg_pool2d(const Real* x, Windows of, Real* y) {
    Index i = element();
    if (i >= (Index)of.planes * of.oh * of.ow) return;
    Spot at(i, of.oh, of.ow);
    int row = at.row * of.sh - of.ph, column = at.column * of.sw - of.pw;
    Wide total = 0;
    for (int a = max(row, 0); a < min(row + of.kh, of.h); ++a)
        for (int b = max(column, 0); b < min(column + of.kw, of.w); ++b) total += wide(x[(at.plane * of.h + a) * of.w + b]);
    y[i] = real(total / (of.kh * of.kw));
}

KERNEL avg_pool2d_spread(const Real* g, Windows of, Real* dx) {
    Index i = element();
    if (i >= (Index)of.planes * of.h * of.w) return;
    Spot at(i, of.h, of.w);
    Covering rows(at.row + of.ph, of.kh, of.sh, of.oh), columns(at.column + of.pw, of.kw, of.sw, of.ow);
    Wide total = 0;
    for (int a = rows.first; a <= rows.last; ++a)
        for (int b = columns.first; b <= columns.last; ++b) total += wide(g[(at.plane * of.oh + a) * of.ow + b]);
    dx[i] = real(total / (of.kh * of.kw));
}
