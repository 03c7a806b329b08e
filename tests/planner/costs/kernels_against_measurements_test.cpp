// The kernel models against published measurements of single kernels. Errors are printed; bounds are what the models
// hold today, so that a change that makes them worse shows.

#include <cmath>
#include <cstdio>

#include <gtest/gtest.h>

#include "planner/costs/attention_kernels.hpp"
#include "planner/costs/matrix_product.hpp"

using namespace shardwright;

namespace {

Gpu gpu(int capability, int multiprocessors, double bf16, double bandwidth, double watts)
{
    Gpu gpu;
    gpu.computeCapability = capability;
    gpu.multiprocessors = multiprocessors;
    gpu.peakFlops[DType::Bf16].value = bf16;
    gpu.peakFlops[DType::Fp16].value = bf16;
    gpu.peakFlops[DType::Fp8].value = 2 * bf16;
    gpu.memoryBandwidth.value = bandwidth;
    gpu.power.value = watts;
    return gpu;
}

Gpu a100()
{
    return gpu(80, 108, 312e12, 2.039e12, 400);
}
Gpu a100Pcie()
{
    return gpu(80, 108, 312e12, 1.935e12, 300);
}
Gpu h100()
{
    return gpu(90, 132, 989.4e12, 3.35e12, 700);
}

struct MeasuredProduct {
    std::int64_t batch, m, n, k;
    double tflops;
};

struct Errors {
    double mean = 0, worst = 0;
};

template <std::size_t N>
Errors compare(const char* what, const Gpu& on, const GpuFacts& facts, DType dtype, const MeasuredProduct (&rows)[N])
{
    Errors errors;
    for (const MeasuredProduct& row : rows) {
        const MatrixProduct product{row.batch, row.m, row.n, row.k, dtype, 2};
        const double tflops = product.flops() / seconds(on, facts, product) * 1e-12;
        const double error = tflops / row.tflops - 1;
        errors.mean += std::abs(error) / N;
        errors.worst = std::max(errors.worst, std::abs(error));
        std::printf("%s %4ld x %6ld %6ld %6ld: measured %7.1f, predicted %7.1f TFLOP/s, %+5.1f %%\n", what, row.batch,
                    row.m, row.n, row.k, row.tflops, tflops, 100 * error);
    }
    std::printf("%s: mean %.1f %%, worst %.1f %%\n", what, 100 * errors.mean, 100 * errors.worst);
    return errors;
}

} // namespace

TEST(KernelsAgainstMeasurements, productsOnA100)
{
    // github.com/Azure/AI-benchmarking-guide, ND A100 v4, fp16, random data, after 10,000 runs to warm up
    const MeasuredProduct rows[] = {{1, 1024, 1024, 1024, 119.4},    {1, 2048, 2048, 2048, 221.8},
                                    {1, 4096, 4096, 4096, 228.0},    {1, 8192, 8192, 8192, 253.7},
                                    {1, 16384, 16384, 16384, 256.5}, {1, 6144, 12288, 12288, 250.8},
                                    {1, 802816, 192, 768, 157.8}};
    const Errors errors = compare("A100 SXM", a100(), gpuFacts(a100()), DType::Fp16, rows);
    EXPECT_LT(errors.mean, 0.06);
    EXPECT_LT(errors.worst, 0.20);
}

TEST(KernelsAgainstMeasurements, linearLayersOfLlamaOnA100Pcie)
{
    // github.com/microsoft/vidur, data/profiling/compute/a100/meta-llama/Llama-2-7b-hf/mlp.csv: mean milliseconds of
    // q, k and v together (n 12288), output (4096), gate and up together (22016) and down (k 11008) by tokens
    const struct {
        std::int64_t tokens;
        double milliseconds[4];
    } measured[] = {{4096, {1.857, 0.600, 3.279, 1.560}},  {3840, {1.796, 0.5443, 3.1796, 1.459}},
                    {3456, {1.602, 0.4852, 2.849, 1.445}}, {944, {0.478, 0.157, 0.719, 0.431}},
                    {896, {0.448, 0.159, 0.716, 0.374}},   {768, {0.346, 0.117, 0.577, 0.298}}};
    const std::int64_t shapes[4][2] = {{12288, 4096}, {4096, 4096}, {22016, 4096}, {4096, 11008}};
    MeasuredProduct rows[24];
    std::size_t i = 0;
    for (const auto& row : measured)
        for (int layer = 0; layer < 4; ++layer) {
            const MatrixProduct product{1, row.tokens, shapes[layer][0], shapes[layer][1], DType::Fp16, 2};
            rows[i++] = {1, product.m, product.n, product.k, product.flops() / row.milliseconds[layer] * 1e-9};
        }
    const Errors errors = compare("A100 PCIe", a100Pcie(), gpuFacts(a100Pcie()), DType::Fp16, rows);
    EXPECT_LT(errors.mean, 0.06);
    EXPECT_LT(errors.worst, 0.15);
}

TEST(KernelsAgainstMeasurements, shortProductsOnH100)
{
    // github.com/openxla/xla, xla/service/gpu/model/matmul_interpolator_data.h, sm_90, bf16: single short runs, which a
    // clock higher than the sustained one carries
    const MeasuredProduct rows[] = {
        {1, 1024, 2048, 256, 139.5},  {2, 256, 2048, 2048, 332.2},  {1, 256, 2048, 256, 41.8},
        {1, 4096, 512, 512, 238.8},   {4, 4096, 256, 2048, 588.7},  {2, 1024, 2048, 1024, 493.4},
        {1, 256, 2048, 4096, 285.9},  {2, 512, 2048, 2048, 525.3},  {4, 1024, 2048, 2048, 712.7},
        {1, 4096, 1024, 512, 343.7},  {1, 2048, 2048, 2048, 632.0}, {1, 256, 512, 4096, 91.7},
        {1, 4096, 4096, 256, 392.2},  {2, 2048, 4096, 1024, 678.7}, {2, 4096, 4096, 2048, 763.0},
        {4, 1024, 512, 2048, 514.2},  {1, 2048, 512, 2048, 347.7},  {1, 4096, 4096, 4096, 783.3},
        {1, 512, 4096, 1024, 373.3},  {1, 256, 1024, 4096, 172.3},  {1, 4096, 2048, 512, 447.0},
        {4, 1024, 1024, 2048, 626.1}, {4, 4096, 1024, 1024, 673.8}, {4, 4096, 4096, 512, 619.9},
        {1, 2048, 1024, 2048, 523.3}, {2, 4096, 1024, 4096, 750.6}, {1, 1024, 1024, 2048, 350.0},
        {4, 4096, 4096, 256, 503.9},  {4, 2048, 2048, 2048, 725.7}, {1, 1024, 512, 2048, 220.0},
        {2, 4096, 2048, 4096, 783.2}, {1, 256, 4096, 2048, 324.6},  {1, 512, 2048, 1024, 232.6},
        {2, 2048, 2048, 1024, 600.2}, {1, 2048, 2048, 4096, 738.0}, {1, 4096, 2048, 1024, 593.2},
        {4, 4096, 4096, 1024, 725.5}, {1, 1024, 4096, 2048, 634.2}, {1, 512, 4096, 4096, 644.1},
        {1, 1024, 1024, 4096, 470.1}, {1, 1024, 1024, 256, 82.0},   {1, 512, 512, 1024, 71.2}};
    GpuFacts boosted = gpuFacts(h100());
    boosted.tensorShare = 0.87; // of the peak, at the clock of a short run; the share of long ones is tested below
    const Errors errors = compare("H100 SXM", h100(), boosted, DType::Bf16, rows);
    EXPECT_LT(errors.mean, 0.04);
    EXPECT_LT(errors.worst, 0.15);
}

TEST(KernelsAgainstMeasurements, longProductsOnH100)
{
    // github.com/tile-ai/tilelang, benchmark/matmul/README.md, fp16 on H800 SXM (an H100 with slower NVLink)
    const MeasuredProduct half[] = {{1, 8192, 8192, 256, 386},  {1, 8192, 8192, 512, 520},  {1, 8192, 8192, 1024, 628},
                                    {1, 8192, 8192, 2048, 705}, {1, 8192, 8192, 4096, 736}, {1, 8192, 8192, 8192, 758},
                                    {1, 8192, 8192, 16384, 766}};
    const Errors errors = compare("H800 SXM", h100(), gpuFacts(h100()), DType::Fp16, half);
    EXPECT_LT(errors.mean, 0.08);
    // github.com/Azure/AI-benchmarking-guide, ND H100 v5, fp8
    const MeasuredProduct quarter[] = {{1, 1024, 1024, 1024, 274.1},     {1, 2048, 2048, 2048, 1011.3},
                                       {1, 4096, 4096, 4096, 1216.9},    {1, 8192, 8192, 8192, 1290.1},
                                       {1, 16384, 16384, 16384, 1377.3}, {1, 32768, 32768, 32768, 1382.2},
                                       {1, 6144, 12288, 12288, 1351.4}};
    const Errors fp8 = compare("H100 SXM fp8", h100(), gpuFacts(h100()), DType::Fp8, quarter);
    EXPECT_LT(fp8.mean, 0.10);
}

TEST(KernelsAgainstMeasurements, attentionOnA100)
{
    // FlashAttention-2, arXiv 2307.08691, figure 4: causal, forward and backward, 16k tokens of 2048 hidden in all
    const std::int64_t lengths[] = {512, 1024, 2048, 4096, 8192, 16384};
    const double measured64[] = {88, 119, 140, 156, 165, 171};
    const double measured128[] = {99, 133, 155, 173, 182, 189};
    const GpuFacts facts = gpuFacts(a100());
    for (const std::int64_t head : {64, 128}) {
        double mean = 0;
        for (std::size_t i = 0; i < 6; ++i) {
            const AttentionShape shape{16384 / lengths[i], 2048 / head, lengths[i], lengths[i], head, head, true};
            const double took = attentionSeconds(a100(), facts, DType::Fp16, shape, false) +
                                attentionSeconds(a100(), facts, DType::Fp16, shape, true);
            const double tflops = (attentionFlops(shape, false) + attentionFlops(shape, true)) / took * 1e-12;
            const double published = head == 64 ? measured64[i] : measured128[i];
            std::printf("A100 attention, head %3ld, %5ld tokens: measured %5.0f, predicted %5.1f TFLOP/s, %+5.1f %%\n",
                        head, lengths[i], published, tflops, 100 * (tflops / published - 1));
            mean += std::abs(tflops / published - 1) / 6;
        }
        EXPECT_LT(mean, 0.05) << head;
    }
}

TEST(KernelsAgainstMeasurements, otherAttentionKernels)
{
    // github.com/facebookresearch/xformers/pull/412: forward on A100, fp16, 160 heads of 128, no mask
    for (const std::int64_t length : {4096, 8192}) {
        const AttentionShape shape{1, 160, length, length, 128, 128, false};
        const double took =
            attentionSeconds(a100(), gpuFacts(a100()), DType::Fp16, shape, false, AttentionKernels::MemoryEfficient);
        EXPECT_NEAR(attentionFlops(shape, false) / took * 1e-12 / 107, 1, 0.05) << length;
    }
    // github.com/Dao-AILab/flash-attention/pull/1893: FlashAttention-2 with deterministic=True on H100, causal, 8192
    // tokens, 16 heads of 128; forward is what it always is
    const AttentionShape shape{2, 16, 8192, 8192, 128, 128, true};
    const GpuFacts facts = gpuFacts(h100());
    const double backward = attentionSeconds(h100(), facts, DType::Bf16, shape, true, AttentionKernels::Deterministic);
    EXPECT_NEAR(attentionFlops(shape, true) / backward * 1e-12 / 166, 1, 0.03);
    EXPECT_DOUBLE_EQ(attentionSeconds(h100(), facts, DType::Bf16, shape, false, AttentionKernels::Deterministic),
                     attentionSeconds(h100(), facts, DType::Bf16, shape, false));
}
