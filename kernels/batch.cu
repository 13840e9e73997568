// batch.cu: a batch of images out of a data set that lies in device memory as bytes: gathered, mirrored, scaled.
//
// Idea: bytes take a quarter of the memory and of the traffic. Scaling is a look-up in a table of 256 floats, which the cache
//   holds, so the result equals minigan.data.Batches' to the last bit. Which images make the batch is an argument of the
//   kernel, so that no copy from the host precedes it.
// Thread -> output: thread i of the grid computes element i of y.
// Shared memory: none.
//
// 64-bit indices: gather_images
#include "common.cuh"

#define ROWS 512  // minigan/training/feed.py's too; 2 KB of the 4 that a kernel's arguments may take

// The images of a batch by their numbers; ~number for one that is mirrored, left to right.
struct Rows {
  int images[ROWS];
};

// images (count, height, width, channels), rows (batch, at most ROWS), table (256) -> y (batch, height, width, channels).
// A number outside the data set gives NaN.
extern "C" __global__ void __launch_bounds__(256)
    gather_images(const unsigned char* images, const Rows rows, const float* table, float* y, int count, int batch,
                  int height, int width, int channels) {
  const long long pixels = static_cast<long long>(height) * width, i = grid_thread();
  if (i >= batch * pixels * channels) return;
  const int c = static_cast<int>(i % channels), column = static_cast<int>(i / channels % width);
  const long long row = i / channels / width % height;
  const int number = rows.images[i / channels / pixels], source = number < 0 ? width - 1 - column : column;
  const long long image = number < 0 ? ~number : number;
  if (image >= count)
    y[i] = nanf("");
  else
    y[i] = table[images[(image * pixels + row * width + source) * channels + c]];
}
