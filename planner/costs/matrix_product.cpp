#include "planner/costs/matrix_product.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace shardwright {

namespace {

struct Tile {
    std::int64_t m, n;
    int rate; // into GpuFacts::tileRates
};
constexpr Tile kTiles[] = {{256, 128, 0}, {128, 256, 0}, {128, 128, 1}, {256, 64, 1},
                           {64, 256, 1},  {128, 64, 2},  {64, 128, 2},  {64, 64, 3}};
constexpr double kLargestTile = 256 * 128;
// Split along k: several blocks work on one tile and their fp32 sums are added up by another kernel. Worth it for few
// tiles with a long k.
constexpr int kSplits[] = {1, 2, 3, 4, 6, 8};
constexpr std::int64_t kShortestSplit = 512;

// Tensor-core kernels load 16 bytes at a time; rows that start elsewhere need others (NVIDIA, Matrix Multiplication
// Background, "tensor core requirements"). Measured on A100: padding the rows of GPT-2's head, 50,257 wide and three
// tenths of the model's work, makes the whole of it 30 % faster (github.com/intel/torch-xpu-ops/issues/1129): half the
// rate. assumed: for any misalignment and any product.
constexpr double kUnalignedRate = 0.5;

} // namespace

double seconds(const Gpu& gpu, const GpuFacts& facts, const MatrixProduct& product)
{
    if (product.batch <= 0 || product.m <= 0 || product.n <= 0 || product.k <= 0)
        return 0;
    const double bandwidth = sustainedBandwidth(gpu, facts);
    const double rate =
        sustainedFlops(gpu, facts, product.dtype) * (product.aligned ? 1 : kUnalignedRate) / facts.multiprocessors;
    const auto outputs = static_cast<double>(product.batch) * static_cast<double>(product.m * product.n);
    const auto k = static_cast<double>(product.k);
    double best = std::numeric_limits<double>::max();
    for (const Tile& tile : kTiles) {
        const std::int64_t tiles = product.batch * ceilDivide(product.m, tile.m) * ceilDivide(product.n, tile.n);
        const auto area = static_cast<double>(tile.m * tile.n);
        const double perK = 2 * area / (rate * facts.tileRates[tile.rate]);
        const double around = facts.tileSeconds * area / kLargestTile;
        for (const int split : kSplits) {
            if (split > 1 && (product.k < split * kShortestSplit || tiles * split > 4 * facts.multiprocessors))
                break;
            const auto waves = static_cast<double>(ceilDivide(tiles * split, facts.multiprocessors));
            double took = waves * (perK * k / split + around);
            if (split > 1) // fp32 partial sums stay in the second-level cache for the better part
                took += facts.kernelSeconds + split * 4 * outputs / bandwidth;
            best = std::min(best, took);
        }
    }
    const auto operands = static_cast<double>(product.batch) * k * static_cast<double>(product.m + product.n);
    const double bytes =
        operands * static_cast<double>(bitsOf(product.dtype)) / 8 + outputs * static_cast<double>(product.outBytes);
    // What fits the cache is there already: operands are fresh. Loads and multiplications overlap, but not wholly.
    const double moving = std::max(0.0, bytes - facts.cacheBytes) / bandwidth;
    return std::cbrt(best * best * best + moving * moving * moving) + facts.productSeconds;
}

} // namespace shardwright
