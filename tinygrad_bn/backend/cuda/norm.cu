// Batch normalisation of a contiguous x (N, C, S), where S counts the pixels of a plane.
//
// The values of a channel are numbered i = n S + s, and cut into parts of `span`: block (c, p) has part p of channel c. Its threads
// read vectors of WIDTH values, thread t the vectors t, t + THREADS, t + 2 THREADS ..., so that neighbours read neighbours; CHUNK
// values at a time, so that many are on their way. WIDTH is 4 where that divides S, else 1. Arrays of vectors begin at a multiple of
// 16 bytes.

const int CHUNK = 16, READS = CHUNK / WIDTH;

struct alignas(WIDTH * sizeof(Real) < 16 ? WIDTH * sizeof(Real) : 16) Vector {
    Real at[WIDTH];
};

// Where the vectors of a chunk are in x, and how many there are.
struct Places {
    Index at[READS];
    int count;

    __device__ bool have(int k) const { return k / WIDTH < count; }  // value k of the chunk
};

// The places of a thread's vectors, one chunk after the other, without a division for each.
struct Walk {
    Index place, s, size;      // of the next vector, in x and in its plane
    Index step, step_s, jump;  // to the one after it; and at the end of a plane to this channel's next
    int left;                  // vectors of this thread

    __device__ Walk(Index n, Index channels, Index values, Index span, Index part) : size(values / WIDTH) {
        Index i = part * (span / WIDTH) + threadIdx.x, end = min((part + 1) * (span / WIDTH), n * size), plane = i / size;
        left = i < end ? (end - i + THREADS - 1) / THREADS : 0;
        s = i - plane * size;
        place = (plane * channels + blockIdx.x) * size + s;
        Index planes = THREADS / size;
        step_s = THREADS - planes * size;
        step = planes * channels * size + step_s;
        jump = (channels - 1) * size;
    }

    __device__ Places chunk() {
        Places places;
        places.count = min(left, READS);
        left -= places.count;
#pragma unroll
        for (int k = 0; k < READS; ++k) {
            places.at[k] = place;
            place += step;
            s += step_s;
            bool over = s >= size;  // (not an if: for that, nvcc writes each value of a vector by itself)
            s -= over ? size : 0;
            place += over ? jump : 0;
        }
        return places;
    }
};

// A chunk of values as they are stored; zeros after the last.
struct Values {
    Vector vectors[READS];

    __device__ Values(const Real* x, const Places& places) {
#pragma unroll
        for (int k = 0; k < READS; ++k) vectors[k] = k < places.count ? ((const Vector*)x)[places.at[k]] : Vector{};
    }

    __device__ Wide operator[](int k) const { return wide(vectors[k / WIDTH].at[k % WIDTH]); }
};

// Writes f(k) for each value k of a chunk.
template <class F>
__device__ void write(Real* y, const Places& places, F f) {
#pragma unroll
    for (int k = 0; k < READS; ++k) {
        Vector vector;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) vector.at[j] = real(f(k * WIDTH + j));
        if (k < places.count) ((Vector*)y)[places.at[k]] = vector;
    }
}

// ----- sums

// How many values there are, their mean, and the sum of squares of what they differ from it.
struct Moments {
    double count, mean, m2;
};

struct Pair {
    double first, second;
};

__device__ double plus(double a, double b) { return a + b; }
__device__ Pair sum(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }
__device__ Pair partner(Pair mine, int bit) { return {partner(mine.first, bit), partner(mine.second, bit)}; }

// Chan, Golub and LeVeque 1983.
__device__ Moments joined(Moments a, Moments b) {
    if (a.count == 0) return b;
    double count = a.count + b.count, share = b.count / count, delta = b.mean - a.mean;
    return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * (a.count * share)};
}

// The same of all threads at once, in two plain sums, with one division: no less exact than Chan's. The first
// is of what the means differ from `near`, one of the channel's values or means: so large means cost nothing, and where all are
// `near`, the result is exactly that. The second is of squares about the mean itself, none of which is subtracted.
__device__ Moments over_block(Moments mine, double near) {
    Pair all = over_block(Pair{mine.count, mine.count * (mine.mean - near)}, sum);
    double mean = near + all.second / all.first, gap = mine.mean - mean;
    return {all.first, mean, over_block(mine.m2 + mine.count * gap * gap, plus)};
}

// The moments of the block's part, of which the first chunk is given: in each thread two passes over a chunk in registers, less
// the first of its values, so that a constant is exactly its mean and large means cost nothing; then joined in double.
__device__ Moments measure(const Real* x, double near, Places& places, Values& values, Walk& walk) {
    Moments mine = {0, 0, 0};
    while (places.count) {
        Wide first = values[0], total = 0, square = 0, count = places.count * WIDTH;
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) total += places.have(k) ? values[k] - first : 0;
        Wide mean = total / count;
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) {
            Wide gap = places.have(k) ? values[k] - first - mean : 0;
            square += gap * gap;
        }
        mine = joined(mine, {count, (double)first + mean, square});
        if (!walk.left) break;
        places = walk.chunk();
        values = Values(x, places);
    }
    return over_block(mine, near);
}

// The sums of g and of g (x - mean) over the block's part.
__device__ Pair correlate(const Real* g, const Real* x, double mean, Places& places, Values& a, Values& b, Walk& walk) {
    Pair mine = {0, 0};
    Wide near = mean, rest = mean - near;
    while (places.count) {
        Wide along_one = 0, along_x = 0;
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) {
            along_one += a[k];
            along_x += a[k] * (b[k] - near - rest);  // after the last, a[k] is zero
        }
        mine = sum(mine, {along_one, along_x});
        if (!walk.left) break;
        places = walk.chunk();
        a = Values(g, places), b = Values(x, places);
    }
    return over_block(mine, sum);
}

// ----- maps. They begin with a chunk that has been read: while it is on its way, a kernel finds the statistics.

// A channel's gamma or beta, which may be null.
__device__ Wide of_channel(const Wide* a, Wide otherwise) { return a ? a[blockIdx.x] : otherwise; }

// y = gamma (x - mean) / sqrt(var + eps) + beta over the block's part.
__device__ void normalise(
    const Real* x, Wide gamma, Wide beta, double mean, double var, double eps, Real* y, Places places, Values values, Walk walk
) {
    Wide near = mean, rest = mean - near, inv_std = rsqrt(var + eps);
    while (places.count) {
        write(y, places, [&](int k) { return (values[k] - near - rest) * inv_std * gamma + beta; });
        if (!walk.left) break;
        places = walk.chunk();
        values = Values(x, places);
    }
}

// dx = gamma (g - mean(g) - x_hat mean(g x_hat)) / sqrt(var + eps) over the block's part, of sums over the channel.
__device__ void differentiate(
    const Real* g, const Real* x, Wide gamma, double mean, double var, double eps, Pair sums, double count, Real* dx,
    Places places, Values a, Values b, Walk walk
) {
    double inv_std = rsqrt(var + eps), each = 1 / count;
    Wide near = mean, rest = mean - near, inv = inv_std, along_one = sums.first * each;
    Wide along_x_hat = sums.second * inv_std * each, scale = inv_std * gamma;
    while (places.count) {
        write(dx, places, [&](int k) {
            Wide x_hat = (b[k] - near - rest) * inv;
            return (a[k] - (x_hat * along_x_hat + along_one)) * scale;
        });
        if (!walk.left) break;
        places = walk.chunk();
        a = Values(g, places), b = Values(x, places);
    }
}

// ----- parts of channels

// What a block has found of its part, for another kernel to read: field f of part p of channel c at (f, c, p).
__device__ Index note(int field, Index part) { return ((Index)field * gridDim.x + blockIdx.x) * gridDim.y + part; }

// The moments of the channel, from those of its parts, of which there are no more than threads. (They wait for each other, so that
// nvcc leaves the reads of x before these: it would put them behind the sum.)
__device__ Moments read_moments(const double* parts) {
    __syncthreads();
    Moments mine = {0, 0, 0};
    Index p = threadIdx.x;
    if (p < gridDim.y) mine = {parts[note(0, p)], parts[note(1, p)], parts[note(2, p)]};
    return over_block(mine, parts[note(1, 0)]);
}

__device__ Pair read_sums(const double* parts) {
    __syncthreads();
    Pair mine = {0, 0};
    Index p = threadIdx.x;
    if (p < gridDim.y) mine = {parts[note(0, p)], parts[note(1, p)]};
    return over_block(mine, sum);
}

// The part of this block in a kernel that comes after another over the same x: of what that one read last, a GPU's cache still has
// some.
__device__ Index from_the_last() { return gridDim.y - 1 - blockIdx.y; }

// ----- forward: one kernel if a channel is one part, else one for the parts and one that joins them

KERNEL batch_norm(
    const Real* x, long long n, long long channels, long long size, long long span,
    const Wide* gamma, const Wide* beta, double eps, Real* y, double* mean, double* var
) {
    Walk walk(n, channels, size, span, 0), again = walk;
    Places places = walk.chunk();
    Values values(x, places);
    Wide scale = of_channel(gamma, 1), shift = of_channel(beta, 0);
    Moments m = measure(x, wide(x[blockIdx.x * size]), places, values, walk);
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = m.mean;
        var[blockIdx.x] = m.m2 / m.count;
    }
    again.left -= places.count;  // the last chunk is still there
    normalise(x, scale, shift, m.mean, m.m2 / m.count, eps, y, places, values, again);
}

KERNEL batch_norm_parts(const Real* x, long long n, long long channels, long long size, long long span, double* parts) {
    Walk walk(n, channels, size, span, blockIdx.y);
    Places places = walk.chunk();
    Values values(x, places);
    Moments m = measure(x, wide(x[blockIdx.x * size]), places, values, walk);
    if (threadIdx.x == 0) {
        parts[note(0, blockIdx.y)] = m.count;
        parts[note(1, blockIdx.y)] = m.mean;
        parts[note(2, blockIdx.y)] = m.m2;
    }
}

KERNEL batch_norm_joined(
    const Real* x, long long n, long long channels, long long size, long long span, const double* parts,
    const Wide* gamma, const Wide* beta, double eps, Real* y, double* mean, double* var
) {
    Walk walk(n, channels, size, span, from_the_last());
    Places places = walk.chunk();
    Values values(x, places);
    Wide scale = of_channel(gamma, 1), shift = of_channel(beta, 0);
    Moments m = read_moments(parts);
    if (threadIdx.x == 0 && blockIdx.y == 0) {
        mean[blockIdx.x] = m.mean;
        var[blockIdx.x] = m.m2 / m.count;
    }
    normalise(x, scale, shift, m.mean, m.m2 / m.count, eps, y, places, values, walk);
}

KERNEL batch_norm_inference(
    const Real* x, long long n, long long channels, long long size, long long span,
    const Wide* gamma, const Wide* beta, const Wide* mean, const Wide* var, double eps, Real* y
) {
    Walk walk(n, channels, size, span, blockIdx.y);
    Places places = walk.chunk();
    Values values(x, places);
    Wide scale = of_channel(gamma, 1), shift = of_channel(beta, 0);
    normalise(x, scale, shift, mean[blockIdx.x], var[blockIdx.x], eps, y, places, values, walk);
}

// ----- backward, alike

// dgamma = sum(g x_hat), dbeta = sum(g).
__device__ void write_affine(Pair sums, double var, double eps, Wide* dgamma, Wide* dbeta) {
    if (threadIdx.x == 0 && blockIdx.y == 0 && dgamma) {
        dgamma[blockIdx.x] = sums.second / sqrt(var + eps);
        dbeta[blockIdx.x] = sums.first;
    }
}

KERNEL batch_norm_backward(
    const Real* g, const Real* x, long long n, long long channels, long long size, long long span,
    const Wide* gamma, const double* mean, const double* var, double eps, Real* dx, Wide* dgamma, Wide* dbeta
) {
    Walk walk(n, channels, size, span, 0), again = walk;
    Places places = walk.chunk();
    Values a(g, places), b(x, places);
    double mu = mean[blockIdx.x], v = var[blockIdx.x];
    Wide scale = of_channel(gamma, 1);
    Pair sums = correlate(g, x, mu, places, a, b, walk);
    write_affine(sums, v, eps, dgamma, dbeta);
    again.left -= places.count;
    differentiate(g, x, scale, mu, v, eps, sums, n * size, dx, places, a, b, again);
}

KERNEL batch_norm_backward_parts(
    const Real* g, const Real* x, long long n, long long channels, long long size, long long span, const double* mean, double* parts
) {
    Walk walk(n, channels, size, span, blockIdx.y);
    Places places = walk.chunk();
    Values a(g, places), b(x, places);
    Pair sums = correlate(g, x, mean[blockIdx.x], places, a, b, walk);
    if (threadIdx.x == 0) {
        parts[note(0, blockIdx.y)] = sums.first;
        parts[note(1, blockIdx.y)] = sums.second;
    }
}

KERNEL batch_norm_backward_joined(
    const Real* g, const Real* x, long long n, long long channels, long long size, long long span, const double* parts,
    const Wide* gamma, const double* mean, const double* var, double eps, Real* dx, Wide* dgamma, Wide* dbeta
) {
    Walk walk(n, channels, size, span, from_the_last());
    Places places = walk.chunk();
    Values a(g, places), b(x, places);
    double mu = mean[blockIdx.x], v = var[blockIdx.x];
    Wide scale = of_channel(gamma, 1);
    Pair sums = read_sums(parts);
    write_affine(sums, v, eps, dgamma, dbeta);
    differentiate(g, x, scale, mu, v, eps, sums, n * size, dx, places, a, b, walk);
}

// ----- running statistics: (1 - weight) old + weight batch's; a channel whose batch statistics are not finite keeps the old

KERNEL follow(
    const Real* running_mean, const Real* running_var, const double* mean, const double* var, long long channels,
    double weight, double correction, Real* new_mean, Real* new_var
) {
    Index c = element();
    if (c >= channels) return;
    bool finite = isfinite(mean[c]) && isfinite(var[c]);
    new_mean[c] = finite ? real((1 - weight) * wide(running_mean[c]) + weight * mean[c]) : running_mean[c];
    new_var[c] = finite ? real((1 - weight) * wide(running_var[c]) + weight * (var[c] * correction)) : running_var[c];
}
