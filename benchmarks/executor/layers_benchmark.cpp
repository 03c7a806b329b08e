// What the host's layers cost: matrix products beside Eigen's own, and what is bound by memory. Shapes of a model of
// ten million parameters (hidden 256, MLP 1024, vocabulary 8192) over 1,024 tokens.

#include <vector>

#include <Eigen/Core>
#include <benchmark/benchmark.h>

#include "executor/clock.hpp"
#include "executor/elements.hpp"
#include "executor/layers/device.hpp"

namespace shardwright {
namespace {

constexpr std::int64_t kShapes[][3] = { // rows, columns, depth
    {1024, 256, 256},
    {1024, 1024, 256},
    {1024, 256, 1024},
    {1024, 8192, 256},
    {8192, 256, 1024}};

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

TensorView viewOf(Matrix& matrix)
{
    return {matrix.data(), matrix.size(), DType::Fp32};
}

void countProduct(benchmark::State& state, const std::int64_t* shape)
{
    state.SetLabel(std::to_string(shape[0]) + " x " + std::to_string(shape[1]) + " x " + std::to_string(shape[2]));
    state.counters["FLOP/s"] =
        benchmark::Counter(2.0 * static_cast<double>(shape[0] * shape[1] * shape[2]),
                           benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}

/// y = x W^T on one thread, in turns with Eigen's product of the same matrices: "of Eigen" is how many times its pace.
void productBesideEigen(benchmark::State& state)
{
    const auto& [m, n, k] = kShapes[state.range(0)];
    const auto device = makeHostDevice(1);
    Matrix x = Matrix::Random(m, k);
    Matrix weight = Matrix::Random(n, k);
    Matrix y(m, n);
    double eigen = 0;
    double own = 0;
    for (auto _ : state) {
        const auto begin = Clock::now();
        y.noalias() = x * weight.transpose();
        benchmark::DoNotOptimize(y.data());
        eigen += secondsSince(begin);
        const auto second = Clock::now();
        device->multiply(viewOf(x), Transpose::No, viewOf(weight), Transpose::Yes, viewOf(y), m, n, k);
        const double took = secondsSince(second);
        own += took;
        state.SetIterationTime(took);
    }
    countProduct(state, kShapes[state.range(0)]);
    state.counters["of Eigen"] = eigen / own;
}
BENCHMARK(productBesideEigen)->DenseRange(0, 4)->UseManualTime();

void productOfDevice(benchmark::State& state)
{
    const auto& [m, n, k] = kShapes[state.range(0)];
    const auto device = makeHostDevice(static_cast<int>(state.range(1)));
    Matrix x = Matrix::Random(m, k);
    Matrix weight = Matrix::Random(n, k);
    Matrix y(m, n);
    for (auto _ : state)
        device->multiply(viewOf(x), Transpose::No, viewOf(weight), Transpose::Yes, viewOf(y), m, n, k);
    countProduct(state, kShapes[state.range(0)]);
}
BENCHMARK(productOfDevice)->ArgsProduct({{0, 1, 2, 3, 4}, {1, 2}})->ArgNames({"shape", "threads"})->UseRealTime();

void productOfDeviceInBf16(benchmark::State& state)
{
    const auto& [m, n, k] = kShapes[state.range(0)];
    const auto device = makeHostDevice(1);
    const auto cast = [](std::int64_t rows, std::int64_t columns) {
        const Matrix values = Matrix::Random(rows, columns);
        std::vector<std::uint16_t> made(static_cast<std::size_t>(values.size()));
        convertElements(values.data(), DType::Fp32, made.data(), DType::Bf16, values.size());
        return made;
    };
    std::vector<std::uint16_t> x = cast(m, k);
    std::vector<std::uint16_t> weight = cast(n, k);
    std::vector<std::uint16_t> y = cast(m, n);
    for (auto _ : state)
        device->multiply({x.data(), m * k, DType::Bf16}, Transpose::No, {weight.data(), n * k, DType::Bf16},
                         Transpose::Yes, {y.data(), m * n, DType::Bf16}, m, n, k);
    countProduct(state, kShapes[state.range(0)]);
}
BENCHMARK(productOfDeviceInBf16)->DenseRange(0, 4);

/// Forward, then forward and backward, of 2 sequences of 512 tokens, 4 heads of 64.
void attention(benchmark::State& state)
{
    const AttentionShape shape{2, 512, 4, 4, 64};
    constexpr std::int64_t kElements = std::int64_t{2} * 512 * 4 * 64;
    const auto device = makeHostDevice(1);
    std::vector<Matrix> tensors(8, Matrix::Random(1, kElements));
    const auto heads = [&](std::size_t which) { return HeadsView{viewOf(tensors[which]), 0, 4 * 64}; };
    Matrix logSumExp(1, 2 * 512 * 4);
    for (auto _ : state) {
        device->attention(shape, heads(0), heads(1), heads(2), heads(3), viewOf(logSumExp));
        if (state.range(0) != 0)
            device->attentionGradient(shape, {heads(4), heads(0), heads(1), heads(2), heads(3), viewOf(logSumExp),
                                              heads(5), heads(6), heads(7)});
    }
}
BENCHMARK(attention)->DenseRange(0, 1)->ArgName("backward")->Unit(benchmark::kMillisecond);

/// A pass over 1,024 tokens' inner activations.
void swiGlu(benchmark::State& state)
{
    const auto device = makeHostDevice(1);
    Matrix gate = Matrix::Random(1024, 1024);
    Matrix up = Matrix::Random(1024, 1024);
    Matrix product(1024, 1024);
    for (auto _ : state)
        device->swiGlu(viewOf(gate), viewOf(up), viewOf(product));
    state.SetBytesProcessed(state.iterations() * 3 * product.size() * 4);
}
BENCHMARK(swiGlu);

void norm(benchmark::State& state)
{
    const auto device = makeHostDevice(1);
    Matrix x = Matrix::Random(1024, 256);
    Matrix y(1024, 256);
    Matrix weight = Matrix::Ones(1, 256);
    Matrix statistics(1, 1024);
    for (auto _ : state)
        device->norm({1024, 256, false, 1e-5f}, viewOf(x), viewOf(weight), {}, viewOf(y), viewOf(statistics));
    state.SetBytesProcessed(state.iterations() * 2 * y.size() * 4);
}
BENCHMARK(norm);

} // namespace
} // namespace shardwright
