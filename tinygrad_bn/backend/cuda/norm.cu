// Batch normalisation of a contiguous x (N, C, S), where S counts the pixels of a plane.
//
// The values of a channel are numbered i = n S + s, and cut into parts of `span`: block (c, p) has part p of channel c. Thread t
// takes values t, t + THREADS, t + 2 THREADS ..., so that neighbours read neighbours, CHUNK of them at a time.

const int CHUNK = 16;

// How many values there are, their mean, and the sum of squares of what they differ from it.
struct Moments {
    double count, mean, m2;
};

// Chan, Golub and LeVeque 1983.
__device__ Moments joined(Moments a, Moments b) {
    if (b.count == 0) return a;
    if (a.count == 0) return b;
    double count = a.count + b.count, share = b.count / count, delta = b.mean - a.mean;
    return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * (a.count * share)};
}

struct Pair {
    double first, second;
};

__device__ Pair sum(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }

// The places in x of a thread's values, one after the other, without a division for each.
struct Walk {
    long long place, left;  // of the next value; how many values of the part begin with it
    long long step, jump;   // from value to value; and at the end of a plane to this channel's next
    int s, step_s, size;

    __device__ Walk(long long n, long long channels, long long size, long long span) : size(size) {
        Index i = blockIdx.y * span + threadIdx.x, plane = i / this->size;
        left = min((blockIdx.y + 1) * span, n * size) - i;
        s = i % this->size;
        place = (plane * channels + blockIdx.x) * size + s;
        step_s = THREADS % this->size;
        step = THREADS / this->size * channels * size + step_s;
        jump = (channels - 1) * size;
    }

    __device__ int chunk() const { return left <= 0 ? 0 : (int)min((left + THREADS - 1) / THREADS, (long long)CHUNK); }

    __device__ void next() {
        left -= THREADS;
        place += step;
        s += step_s;
        if (s >= size) {
            s -= size;
            place += jump;
        }
    }
};

// The moments of the block's part: in each thread two passes over CHUNK values in registers, less the first of them, so that a
// constant is exactly its mean and large means cost nothing; then joined in double.
__device__ Moments measure(const Real* x, Walk walk) {
    Moments mine = {0, 0, 0};
    while (int count = walk.chunk()) {
        Wide value[CHUNK], total = 0, square = 0;
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) {
            value[k] = k < count ? wide(x[walk.place]) : 0;
            walk.next();
        }
        Wide first = value[0];
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) total += value[k] = k < count ? value[k] - first : 0;
        Wide mean = total / count;
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) square += k < count ? (value[k] - mean) * (value[k] - mean) : 0;
        mine = joined(mine, {(double)count, (double)first + mean, square});
    }
    return over_block(mine, joined);
}

// The sums of g and of g (x - mean) over the block's part.
__device__ Pair correlate(const Real* g, const Real* x, double mean, Walk walk) {
    Pair mine = {0, 0};
    Wide near = mean, rest = mean - near;
    while (int count = walk.chunk()) {
        Wide a[CHUNK], b[CHUNK], along_one = 0, along_x = 0;
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) {
            a[k] = k < count ? wide(g[walk.place]) : 0;
            b[k] = k < count ? wide(x[walk.place]) : near;
            walk.next();
        }
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) {
            along_one += a[k];
            along_x += a[k] * (b[k] - near - rest);
        }
        mine = sum(mine, {along_one, along_x});
    }
    return over_block(mine, sum);
}

// y = gamma (x - mean) / sqrt(var + eps) + beta over the block's part. gamma and beta may be null.
__device__ void normalise(const Real* x, const Wide* gamma, const Wide* beta, double mean, double var, double eps, Real* y, Walk walk) {
    Wide near = mean, rest = mean - near, inv_std = 1 / sqrt(var + eps);
    Wide scale = gamma ? gamma[blockIdx.x] : 1, shift = beta ? beta[blockIdx.x] : 0;
    while (int count = walk.chunk()) {
        Wide value[CHUNK];
        Walk there = walk;
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) {
            value[k] = k < count ? wide(x[walk.place]) : 0;
            walk.next();
        }
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) {
            if (k < count) y[there.place] = real((value[k] - near - rest) * inv_std * scale + shift);
            there.next();
        }
    }
}

// dx = gamma (g - mean(g) - x_hat mean(g x_hat)) / sqrt(var + eps) over the block's part, of sums over the channel.
__device__ void differentiate(
    const Real* g, const Real* x, const Wide* gamma, double mean, double var, double eps, Pair sums, double count, Real* dx, Walk walk
) {
    double inv_std = 1 / sqrt(var + eps);
    Wide near = mean, rest = mean - near, inv = inv_std, along_one = sums.first / count;
    Wide along_x_hat = sums.second * inv_std / count, scale = inv_std * (gamma ? gamma[blockIdx.x] : 1);
    const int HALF = CHUNK / 2;  // of two arrays
    while (int count = min(walk.chunk(), HALF)) {
        Wide a[HALF], b[HALF];
        Walk there = walk;
#pragma unroll
        for (int k = 0; k < HALF; ++k) {
            a[k] = k < count ? wide(g[walk.place]) : 0;
            b[k] = k < count ? wide(x[walk.place]) : 0;
            walk.next();
        }
#pragma unroll
        for (int k = 0; k < HALF; ++k) {
            Wide x_hat = (b[k] - near - rest) * inv;
            if (k < count) dx[there.place] = real((a[k] - (x_hat * along_x_hat + along_one)) * scale);
            there.next();
        }
    }
}

// What a block has found of its part, for another kernel to read: field f of part p of channel c at (f, p, c).
__device__ double* note(double* parts, int field) { return parts + ((long long)field * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x; }

// The moments of the channel, from those of its parts, of which there are no more than threads.
__device__ Moments read_moments(const double* parts) {
    Moments mine = {0, 0, 0};
    long long all = (long long)gridDim.y * gridDim.x, at = (long long)threadIdx.x * gridDim.x + blockIdx.x;
    if (threadIdx.x < gridDim.y) mine = {parts[at], parts[at + all], parts[at + 2 * all]};
    return over_block(mine, joined);
}

__device__ Pair read_sums(const double* parts) {
    Pair mine = {0, 0};
    long long all = (long long)gridDim.y * gridDim.x, at = (long long)threadIdx.x * gridDim.x + blockIdx.x;
    if (threadIdx.x < gridDim.y) mine = {parts[at], parts[at + all]};
    return over_block(mine, sum);
}

// ----- forward: one kernel if a channel is one part, else one for the parts and one that joins them

KERNEL batch_norm(
    const Real* x, long long n, long long channels, long long size, long long span,
    const Wide* gamma, const Wide* beta, double eps, Real* y, double* mean, double* var
) {
    Walk walk(n, channels, size, span);
    Moments m = measure(x, walk);
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = m.mean;
        var[blockIdx.x] = m.m2 / m.count;
    }
    normalise(x, gamma, beta, m.mean, m.m2 / m.count, eps, y, walk);
}

KERNEL batch_norm_parts(const Real* x, long long n, long long channels, long long size, long long span, double* parts) {
    Moments m = measure(x, Walk(n, channels, size, span));
    if (threadIdx.x == 0) {
        *note(parts, 0) = m.count;
        *note(parts, 1) = m.mean;
        *note(parts, 2) = m.m2;
    }
}

KERNEL batch_norm_joined(
    const Real* x, long long n, long long channels, long long size, long long span, const double* parts,
    const Wide* gamma, const Wide* beta, double eps, Real* y, double* mean, double* var
) {
    Moments m = read_moments(parts);
    if (threadIdx.x == 0 && blockIdx.y == 0) {
        mean[blockIdx.x] = m.mean;
        var[blockIdx.x] = m.m2 / m.count;
    }
    normalise(x, gamma, beta, m.mean, m.m2 / m.count, eps, y, Walk(n, channels, size, span));
}

KERNEL batch_norm_inference(
    const Real* x, long long n, long long channels, long long size, long long span,
    const Wide* gamma, const Wide* beta, const Wide* mean, const Wide* var, double eps, Real* y
) {
    normalise(x, gamma, beta, mean[blockIdx.x], var[blockIdx.x], eps, y, Walk(n, channels, size, span));
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
    double mu = mean[blockIdx.x], v = var[blockIdx.x];
    Walk walk(n, channels, size, span);
    Pair sums = correlate(g, x, mu, walk);
    write_affine(sums, v, eps, dgamma, dbeta);
    differentiate(g, x, gamma, mu, v, eps, sums, (double)(n * size), dx, walk);
}

KERNEL batch_norm_backward_parts(
    const Real* g, const Real* x, long long n, long long channels, long long size, long long span, const double* mean, double* parts
) {
    Pair sums = correlate(g, x, mean[blockIdx.x], Walk(n, channels, size, span));
    if (threadIdx.x == 0) {
        *note(parts, 0) = sums.first;
        *note(parts, 1) = sums.second;
    }
}

KERNEL batch_norm_backward_joined(
    const Real* g, const Real* x, long long n, long long channels, long long size, long long span, const double* parts,
    const Wide* gamma, const double* mean, const double* var, double eps, Real* dx, Wide* dgamma, Wide* dbeta
) {
    double mu = mean[blockIdx.x], v = var[blockIdx.x];
    Pair sums = read_sums(parts);
    write_affine(sums, v, eps, dgamma, dbeta);
    differentiate(g, x, gamma, mu, v, eps, sums, (double)(n * size), dx, Walk(n, channels, size, span));
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
