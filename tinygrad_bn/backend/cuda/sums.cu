// The sum of each channel of a contiguous x (N, C, S), where S counts the pixels of a plane; S = 1 for the rows of a matrix.
//
// The values of a channel are numbered i = n S + s, and cut into parts of `span`. Block (c, p) has part p of `width` channels:
// thread t is one of THREADS / width lanes of channel c width + t % width. So neighbours read neighbours, along a plane or a row.

const int CHUNK = 16;  // values that a thread reads at a time, and sums before it adds to a double

// The sum over all threads that have this one's channel, for the first of them: two and two, as in common.cuh.
__device__ double over_block(double mine, int width) {
    __shared__ double shared[THREADS];
    int me = threadIdx.x;
    shared[me] = mine;
    for (int half = THREADS / 2; half >= width; half /= 2) {
        __syncthreads();
        if (me < half) shared[me] += shared[me + half];
    }
    return shared[me];
}

// To parts (P, C); or if `parts` is null, since there is but one, to y.
KERNEL sum_parts(
    const Real* x, long long values, long long channels, long long size, long long span, long long width, double* parts, Real* y
) {
    int lanes = THREADS / (int)width, lane = threadIdx.x / (int)width;
    Index channel = blockIdx.x * (Index)width + threadIdx.x % (int)width, plane = size, others = (channels - 1) * size;
    Index end = channel < channels ? min((blockIdx.y + 1) * span, values) : 0;
    const Real* first = x + channel * plane;
    double mine = 0;
    for (Index i = blockIdx.y * span + lane; i < end; i += lanes * CHUNK) {
        Wide value[CHUNK], total = 0;
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) {
            Index at = i + k * lanes;
            value[k] = at < end ? wide(first[at + at / plane * others]) : 0;
        }
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) total += value[k];
        mine += total;
    }
    mine = over_block(mine, (int)width);
    if (threadIdx.x >= width || channel >= channels) return;
    if (parts) parts[blockIdx.y * (Index)channels + channel] = mine;
    else y[channel] = real(mine);
}

// y from parts (P, C): a thread for each channel.
KERNEL join_parts(const double* parts, long long count, long long channels, Real* y) {
    Index channel = element();
    if (channel >= channels) return;
    double total = 0;
#pragma unroll 16
    for (int p = 0; p < count; ++p) total += parts[p * (Index)channels + channel];
    y[channel] = real(total);
}
