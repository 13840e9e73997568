// batch.cu: a batch of images out of a data set that lies in device memory as bytes: gathered, mirrored, scaled.
//
// Idea: bytes take a quarter of the memory and of the traffic. Scaling is a look-up in a table of 256 floats, which the cache
//   holds, so the result equals minigan.data.Batches' to the last bit.
// Thread -> output: thread i of the grid computes element i of y.
// Shared memory: none.
//
// 64-bit indices: gather_images
#include "common.cuh"

// images (count, height, width, channels), indices (batch), flips (batch), table (256) -> y (batch, height, width, channels).
// A flip mirrors left and right. An index outside the data set gives NaN.
extern "C" __global__ void __launch_bounds__(256)
    gather_images(const unsigned char* images, const long long* indices, const bool* flips, const float* table, float* y,
                  int count, int batch, int height, int width, int channels) {
  const long long pixels = static_cast<long long>(height) * width, i = grid_thread();
  if (i >= batch * pixels * channels) return;
  const int c = static_cast<int>(i % channels), column = static_cast<int>(i / channels % width);
  const long long row = i / channels / width % height, b = i / channels / pixels, image = indices[b];
  const int source = flips[b] ? width - 1 - column : column;
  if (image < 0 || image >= count)
    y[i] = nanf("");
  else
    y[i] = table[images[(image * pixels + row * width + source) * channels + c]];
}
