// The best set of kernels that this processor has, chosen once.

#include "executor/layers/packed_sets.hpp"

#include <vector>

namespace shardwright {

namespace {

PackedProduct* bestSet()
{
#ifdef SHARDWRIGHT_PACKED_SETS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16"))
        return packedProductAvx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
        return packedProductAvx2;
#endif
    return packedProductAsBuilt;
}

} // namespace

float* packedScratch(std::size_t count)
{
    thread_local std::vector<float> memory;
    if (memory.size() < count)
        memory.resize(count);
    return memory.data();
}

void packedProduct(const MatrixView& a, const MatrixView& b, const TargetView& c, std::int64_t m, std::int64_t n,
                   std::int64_t k, bool add)
{
    static PackedProduct* const best = bestSet();
    best(a, b, c, m, n, k, add);
}

} // namespace shardwright
