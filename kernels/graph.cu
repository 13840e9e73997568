// graph.cu: what a replayed CUDA graph is told.
//
// Idea: a graph repeats its launches with the arguments that it was captured with. Numbers of a single step (keys of random
//   numbers, Adam's rates) are therefore read from memory by the kernels in it, and this kernel, outside of it, puts them
//   there: from its own arguments, so there is no copy from the host to wait for.
// Thread -> output: thread i of the one block writes word i.
// Shared memory: none.
#include "common.cuh"

#define WORDS 64  // minigan/capture.py's too

struct Words {
  unsigned long long words[WORDS];
};

// words -> target (count).
extern "C" __global__ void __launch_bounds__(WORDS) set_words(const Words source, unsigned long long* target, int count) {
  const int i = threadIdx.x;
  if (i < count) target[i] = source.words[i];
}
