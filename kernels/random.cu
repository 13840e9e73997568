// random.cu: random numbers that depend on a seed and a counter alone: z of a GAN, drawn where it is needed.
//
// Idea: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). It scrambles a 128-bit counter
//   under a 64-bit key in ten rounds, so that thread i gets its numbers without those before it, and without a state in
//   memory. The key is `seed`, or stands in memory where `key` is not null, for a graph that is replayed at each step. Who
//   goes on under one key adds to `counter` what was used: one for each thread that had elements.
// Thread -> output: thread i scrambles counter + i into four 32-bit words: elements 4i ... 4i + 3 in float, 2i and 2i + 1 in
//   double (PER_THREAD).
// Shared memory: none.
//
// variants: {"REAL": ["float", "double"]}
#include "common.cuh"

#define PER_THREAD static_cast<int>(16 / sizeof(REAL))

// words: the counter in, the random numbers out.
__device__ __forceinline__ void scramble(unsigned (&words)[4], unsigned key0, unsigned key1) {
  for (int round = 0; round < 10; round++) {
    const unsigned long long product0 = 0xD2511F53ull * words[0], product1 = 0xCD9E8D57ull * words[2];
    words[0] = static_cast<unsigned>(product1 >> 32) ^ words[1] ^ key0;
    words[1] = static_cast<unsigned>(product1);
    words[2] = static_cast<unsigned>(product0 >> 32) ^ words[3] ^ key1;
    words[3] = static_cast<unsigned>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// Numbers in [0, 1), all multiples of 2^-24 or 2^-53 alike likely.
__device__ __forceinline__ void fractions(const unsigned (&words)[4], float (&u)[4]) {
  for (int j = 0; j < 4; j++) u[j] = (words[j] >> 8) * 0x1p-24f;
}
__device__ __forceinline__ void fractions(const unsigned (&words)[4], double (&u)[2]) {
  for (int j = 0; j < 2; j++)
    u[j] = ((static_cast<unsigned long long>(words[2 * j]) << 32 | words[2 * j + 1]) >> 11) * 0x1p-53;
}

// sine and cosine of pi x
__device__ __forceinline__ void sine_cosine(float x, float* sine, float* cosine) { sincospif(x, sine, cosine); }
__device__ __forceinline__ void sine_cosine(double x, double* sine, double* cosine) { sincospi(x, sine, cosine); }

__device__ __forceinline__ void draw(unsigned long long seed, unsigned long long counter, REAL (&u)[PER_THREAD]) {
  unsigned words[4] = {static_cast<unsigned>(counter), static_cast<unsigned>(counter >> 32), 0, 0};
  scramble(words, static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32));
  fractions(words, u);
}

// y (n): evenly from [low, high). last: the largest number below high, for sums that rounding takes to it.
extern "C" __global__ void __launch_bounds__(256)
    uniform(REAL* y, REAL low, REAL high, REAL last, const unsigned long long* key, unsigned long long seed,
            unsigned long long counter, int n) {
  const long long thread = grid_thread();
  REAL u[PER_THREAD];
  draw(key ? *key : seed, counter + thread, u);
  for (int j = 0; j < PER_THREAD; j++)
    if (thread * PER_THREAD + j < n) y[thread * PER_THREAD + j] = min(low + (high - low) * u[j], last);
}

// y (n): normal. Box and Muller, 1958: two even numbers make two normal ones, by radius and angle.
extern "C" __global__ void __launch_bounds__(256)
    normal(REAL* y, REAL mean, REAL deviation, const unsigned long long* key, unsigned long long seed,
           unsigned long long counter, int n) {
  const long long thread = grid_thread();
  REAL u[PER_THREAD];
  draw(key ? *key : seed, counter + thread, u);
  for (int j = 0; j < PER_THREAD; j += 2) {
    const REAL radius = deviation * sqrt(-2 * log(1 - u[j]));  // 1 - u is in (0, 1]
    REAL sine, cosine;
    sine_cosine(2 * u[j + 1], &sine, &cosine);
    if (thread * PER_THREAD + j < n) y[thread * PER_THREAD + j] = mean + radius * cosine;
    if (thread * PER_THREAD + j + 1 < n) y[thread * PER_THREAD + j + 1] = mean + radius * sine;
  }
}

// counters (count, 4), keys (count, 2) -> words (count, 4): the bare generator, for the published test vectors.
extern "C" __global__ void __launch_bounds__(256)
    philox(const unsigned* counters, const unsigned* keys, unsigned* words, int count) {
  const long long i = grid_thread();
  if (i >= count) return;
  unsigned block[4];
  for (int j = 0; j < 4; j++) block[j] = counters[4 * i + j];
  scramble(block, keys[2 * i], keys[2 * i + 1]);
  for (int j = 0; j < 4; j++) words[4 * i + j] = block[j];
}
