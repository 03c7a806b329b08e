// The best set of kernels that this processor has, chosen once.

#include "executor/layers/packed_choice.hpp"

namespace shardwright {

std::vector<PackedSet> packedSets()
{
    std::vector<PackedSet> sets;
#ifdef SHARDWRIGHT_PACKED_SETS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16"))
        sets.push_back({"AVX-512 with bf16", packedProductAvx512});
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
        sets.push_back({"AVX2", packedProductAvx2});
#endif
    sets.push_back({"as built", packedProductAsBuilt});
    return sets;
}

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
    static PackedProduct* const best = packedSets().front().product;
    best(a, b, c, m, n, k, add);
}

} // namespace shardwright
