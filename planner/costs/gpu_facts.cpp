#include "planner/costs/gpu_facts.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace shardwright {

namespace {

/// One row per architecture. `watts`: board power of the product that the shares were measured on.
struct Architecture {
    int capability;
    double watts;
    double powerExponent; // of the clock that another board power leaves
    GpuFacts facts;
};

// Sources.
//  [azure]   github.com/Azure/AI-benchmarking-guide, results of ND A100 v4, ND H100 v5, ND H200 v5: cublasLt matrix
//            products with random data after 10,000 warm-up runs, BabelStream, FlashAttention-2.
//  [mamf]    github.com/stas00/ml-engineering, compute/accelerator: maximum achievable matmul FLOPS.
//  [xla]     github.com/openxla/xla, service/gpu/model/matmul_interpolator_data.h: measured products on sm_90.
//  [h800]    github.com/tile-ai/tilelang, benchmark/matmul/README.md: fp16 products of 8192 x 8192 x K on H800 SXM.
//  [vidur]   github.com/microsoft/vidur, data/profiling/compute/a100: kernels of Llama-2 layers on A100 PCIe.
//  [fa2]     FlashAttention-2, arXiv 2307.08691: 73 % forward and 63 % backward of an A100's peak, head size 128;
//            up to 335 TFLOP/s forward and backward on H100.
//  [fa-pr]   github.com/Dao-AILab/flash-attention/pull/2688: FlashAttention-2 on H100 by sequence length.
//  [fa-b200] github.com/Dao-AILab/flash-attention/issues/1589: the same on B200.
//  [torchao] github.com/pytorch/ao, torchao/testing/float8/roofline_utils.py (2024): on an H100 of 500 W with 2.4 TB/s
//            large products reach 0.6 of 989 TFLOP/s, large pointwise kernels 2.2 TB/s.
//  [a5000]   github.com/gpu-mode/ring-attention/issues/10: the same on RTX A5000.
// Cache sizes are NVIDIA's (architecture white papers). tileRates, tileSeconds and productSeconds of 90 are a fit to
// [xla], of 80 to [azure] and [vidur].
const Architecture kArchitectures[] = {
    // V100. Assumed: cuBLAS on Volta near 80 % of 125 TFLOP/s; BabelStream 790 to 830 of 900 GB/s; memory-efficient
    // attention.
    {.capability = 70,
     .watts = 300,
     .powerExponent = 0.5,
     .facts = {.multiprocessors = 80,
               .tensorShare = 0.8,
               .fp8Share = 0.0,
               .vectorShare = 0.9,
               .tileRates = {1.0, 0.98, 0.95, 0.85},
               .tileSeconds = 8.0e-6,
               .productSeconds = 4.0e-6,
               .kernelSeconds = 2.5e-6,
               .memoryShare = 0.88,
               .cacheBytes = 6e6,
               .attention = {0.35, 0.25, 0.35, 0.25}}},
    // T4. Assumed: its 70 W do not hold the clock that the peak is stated at.
    {.capability = 75,
     .watts = 70,
     .powerExponent = 0.5,
     .facts = {.multiprocessors = 40,
               .tensorShare = 0.55,
               .fp8Share = 0.0,
               .vectorShare = 0.6,
               .tileRates = {1.0, 0.98, 0.95, 0.85},
               .tileSeconds = 8.0e-6,
               .productSeconds = 4.0e-6,
               .kernelSeconds = 2.5e-6,
               .memoryShare = 0.8,
               .cacheBytes = 4e6,
               .attention = {0.35, 0.25, 0.35, 0.25}}},
    // A100. Measured: 256.5 of 312 TFLOP/s at 16384^3, add and triad 1.70 of 2.04 TB/s, attention 179.5 TFLOP/s at head
    // size 64 [azure], at 128 [fa2].
    {.capability = 80,
     .watts = 400,
     .powerExponent = 0.25,
     .facts = {.multiprocessors = 108,
               .tensorShare = 0.845,
               .fp8Share = 0.0,
               .vectorShare = 0.9,
               .tileRates = {1.0, 0.98, 0.97, 0.9},
               .tileSeconds = 8.0e-6,
               .productSeconds = 3.0e-6,
               .kernelSeconds = 2.0e-6,
               .memoryShare = 0.83,
               .cacheBytes = 40e6,
               .attention = {0.61, 0.55, 0.73, 0.63}}},
    // RTX 30, A40, A5000. Attention measured [a5000]: 84 and 77 of 111 TFLOP/s. The rest assumed.
    {.capability = 86,
     .watts = 350,
     .powerExponent = 0.5,
     .facts = {.multiprocessors = 82,
               .tensorShare = 0.85,
               .fp8Share = 0.0,
               .vectorShare = 0.85,
               .tileRates = {1.0, 0.98, 0.95, 0.85},
               .tileSeconds = 8.0e-6,
               .productSeconds = 3.0e-6,
               .kernelSeconds = 2.0e-6,
               .memoryShare = 0.88,
               .cacheBytes = 6e6,
               .attention = {0.75, 0.7, 0.75, 0.7}}},
    // RTX 40, L4, L40S. Assumed.
    {.capability = 89,
     .watts = 450,
     .powerExponent = 0.5,
     .facts = {.multiprocessors = 128,
               .tensorShare = 0.88,
               .fp8Share = 0.8,
               .vectorShare = 0.85,
               .tileRates = {1.0, 0.98, 0.95, 0.85},
               .tileSeconds = 6.0e-6,
               .productSeconds = 3.0e-6,
               .kernelSeconds = 2.0e-6,
               .memoryShare = 0.88,
               .cacheBytes = 72e6,
               .attention = {0.75, 0.65, 0.78, 0.68}}},
    // H100, H200. Measured: 766 of 989 TFLOP/s at 8192 x 8192 x 16384 [h800], 794 at most [mamf]; fp8 1377 of 1979 at
    // 16384^3, add and triad 2.97 of 3.35 TB/s [azure]; attention at head size 64 [fa-pr], 327.9 TFLOP/s forward and
    // backward at 128 [azure].
    {.capability = 90,
     .watts = 700,
     .powerExponent = 0.85,
     .facts = {.multiprocessors = 132,
               .tensorShare = 0.8,
               .fp8Share = 0.7,
               .vectorShare = 0.9,
               .tileRates = {1.0, 1.0, 0.79, 0.65},
               .tileSeconds = 1.5e-6,
               .productSeconds = 5.5e-6,
               .kernelSeconds = 2.0e-6,
               .memoryShare = 0.88,
               .cacheBytes = 50e6,
               .attention = {0.33, 0.315, 0.38, 0.325}}},
    // B200. Measured: 1745 of 2250 TFLOP/s at most, fp8 3432 of 4500 [mamf], sustained less by as much as on H100;
    // attention [fa-b200]. The rest as H100.
    {.capability = 100,
     .watts = 1000,
     .powerExponent = 0.85,
     .facts = {.multiprocessors = 148,
               .tensorShare = 0.74,
               .fp8Share = 0.72,
               .vectorShare = 0.9,
               .tileRates = {1.0, 1.0, 0.79, 0.65},
               .tileSeconds = 1.5e-6,
               .productSeconds = 5.5e-6,
               .kernelSeconds = 2.0e-6,
               .memoryShare = 0.88,
               .cacheBytes = 126e6,
               .attention = {0.17, 0.15, 0.2, 0.17}}},
};

/// Clock that another board power leaves, relative to the product that was measured. A100: PCIe (300 W) reaches 0.9325
/// of SXM (400 W) in [mamf], the power to 0.25. H100: the part of 500 W reaches 0.6 of the peak [torchao], that of 700
/// W 0.8: the power to 0.85; B200 assumed alike, the others assumed between.
double powerFactor(const Architecture& architecture, double watts)
{
    return watts > 0 ? std::pow(watts / architecture.watts, architecture.powerExponent) : 1.0;
}

// GPUs of one product differ in the clock that they hold within their power: by 5 % between the fastest and the slowest
// of a node's eight ([mamf], "Not all accelerators are created equal"). Of eight draws from a normal distribution the
// range is 2.85 standard deviations.
constexpr double kSpread = 0.05 / 2.85;

/// How many standard deviations the slowest of `gpus` is below the mean: the quantile (n - 3/8) / (n + 1/4) of the
/// normal distribution (Blom 1958).
double deviationsOfSlowest(std::int64_t gpus)
{
    if (gpus <= 1)
        return 0;
    thread_local std::pair<std::int64_t, double> last{1, 0}; // searches ask for the same cluster over and over
    if (last.first == gpus)
        return last.second;
    const double wanted = (static_cast<double>(gpus) - 0.375) / (static_cast<double>(gpus) + 0.25);
    double low = 0;
    double high = 8;
    for (int halving = 0; halving < 40; ++halving) {
        const double middle = (low + high) / 2;
        (1 - std::erfc(middle / std::sqrt(2.0)) / 2 < wanted ? low : high) = middle;
    }
    last = {gpus, low};
    return low;
}

const Architecture& architectureOf(const Gpu& gpu)
{
    const Architecture* found = &kArchitectures[2];
    for (const Architecture& architecture : kArchitectures)
        if (architecture.capability <= gpu.computeCapability)
            found = &architecture;
    return *found;
}

/// Every figure of a host's processor was measured by the executor's own kernels: nothing is left to shares.
GpuFacts hostFacts(const Gpu& gpu)
{
    GpuFacts facts;
    facts.multiprocessors = 1;
    facts.tensorShare = facts.fp8Share = facts.vectorShare = 1;
    facts.memoryShare = 1;
    const double peak = sustainedFlops(gpu, facts, DType::Fp32);
    const double forward = gpu.measuredRates.at(MeasuredRate::AttentionForward).value / peak;
    const double backward = gpu.measuredRates.at(MeasuredRate::AttentionBackward).value / peak;
    facts.attention = {forward, backward, forward, backward};
    return facts;
}

} // namespace

GpuFacts gpuFacts(const Gpu& gpu, std::int64_t gpus)
{
    if (gpu.isHostProcessor())
        return hostFacts(gpu);
    const Architecture& architecture = architectureOf(gpu);
    GpuFacts facts = architecture.facts;
    if (gpu.multiprocessors > 0)
        facts.multiprocessors = gpu.multiprocessors;
    constexpr double kMostOfAnyPeak =
        0.92; // assumed: power to spare does not lift a product above its instruction rate
    const double power = powerFactor(architecture, gpu.power.value);
    const double slowest = 1 - kSpread * deviationsOfSlowest(gpus);
    facts.tensorShare = std::min(kMostOfAnyPeak, facts.tensorShare * power) * slowest;
    facts.fp8Share = std::min(kMostOfAnyPeak, facts.fp8Share * power) * slowest;
    for (double* rate : {&facts.attention.forward64, &facts.attention.backward64, &facts.attention.forward128,
                         &facts.attention.backward128})
        *rate *= std::min(1.0, power) * slowest; // assumed: attention is held back as products are
    return facts;
}

double sustainedFlops(const Gpu& gpu, const GpuFacts& facts, DType dtype)
{
    const auto peak = [&](DType wanted) {
        const auto found = gpu.peakFlops.find(wanted);
        return found == gpu.peakFlops.end() ? 0.0 : found->second.value;
    };
    if (dtype == DType::Fp8 && peak(DType::Fp8) > 0)
        return peak(DType::Fp8) * facts.fp8Share;
    if (dtype == DType::Fp32 && peak(DType::Fp32) > 0)
        return peak(DType::Fp32) * facts.vectorShare;
    const double same = dtype == DType::Fp16 ? peak(DType::Fp16) : peak(DType::Bf16);
    return std::max({same, dtype == DType::Fp32 ? 0.0 : peak(DType::Fp16), peak(DType::Fp32)}) * facts.tensorShare;
}

} // namespace shardwright
