// Every operation of the host device by itself. Gradients: along a random direction, the difference of a weighted sum
// of what the forward made against the gradient's product with the direction. Forward values are fp32, so steps are
// coarse and differences of fourth order.

#include <cmath>
#include <functional>
#include <numeric>
#include <random>

#include <gtest/gtest.h>

#include "executor/elements.hpp"
#include "executor/layers/device.hpp"

using namespace shardwright;

namespace {

using Values = std::vector<float>;

class Random {
public:
    explicit Random(unsigned seed) : m_engine(seed) {}
    Values values(std::int64_t count, float around = 0, float spread = 1)
    {
        std::normal_distribution<float> normal(around, spread);
        Values made(static_cast<std::size_t>(count));
        for (float& value : made)
            value = normal(m_engine);
        return made;
    }

private:
    std::mt19937 m_engine;
};

TensorView viewOf(Values& values)
{
    return {values.data(), static_cast<std::int64_t>(values.size()), DType::Fp32};
}

double dot(const Values& left, const Values& right)
{
    return std::inner_product(left.begin(), left.end(), right.begin(), 0.0);
}

/// `forward` fills outputs from inputs, `backward` the inputs' gradients from those of the outputs.
void expectGradient(std::vector<Values> inputs, std::size_t outputSize,
                    const std::function<void(std::vector<Values>&, Values&)>& forward,
                    const std::function<void(std::vector<Values>&, Values&, std::vector<Values>&)>& backward)
{
    Random random(11);
    Values weights = random.values(static_cast<std::int64_t>(outputSize));
    std::vector<Values> gradients;
    for (const Values& input : inputs)
        gradients.emplace_back(input.size(), std::nanf("")); // written, not added
    {
        std::vector<Values> copy = inputs;
        Values output(outputSize);
        forward(copy, output);
        std::vector<Values> again = inputs;
        backward(again, weights, gradients);
    }
    for (std::size_t which = 0; which < inputs.size(); ++which) {
        const Values direction = random.values(static_cast<std::int64_t>(inputs[which].size()));
        const auto along = [&](float step) {
            std::vector<Values> moved = inputs;
            for (std::size_t i = 0; i < direction.size(); ++i)
                moved[which][i] += step * direction[i];
            Values output(outputSize);
            forward(moved, output);
            return dot(weights, output);
        };
        constexpr float kStep = 2e-3f;
        // Of fourth order, so that a step that stands above fp32's rounding errs little.
        const double difference =
            (8 * (along(kStep) - along(-kStep)) - (along(2 * kStep) - along(-2 * kStep))) / (12 * kStep);
        const double product = dot(gradients[which], direction);
        const double size = std::sqrt(dot(gradients[which], gradients[which]) * dot(direction, direction) /
                                      static_cast<double>(direction.size()));
        EXPECT_GT(size, 0) << which;
        EXPECT_NEAR(product, difference, 5e-3 * size) << "input " << which;
    }
}

class DeviceOperations : public testing::TestWithParam<int> {
protected:
    std::unique_ptr<Device> device = makeHostDevice(GetParam());
    Random random{5};
};

} // namespace

INSTANTIATE_TEST_SUITE_P(Threads, DeviceOperations, testing::Values(1, 3));

TEST_P(DeviceOperations, swiGlu)
{
    expectGradient(
        {random.values(1001), random.values(1001)}, 1001,
        [&](auto& in, Values& out) { device->swiGlu(viewOf(in[0]), viewOf(in[1]), viewOf(out)); },
        [&](auto& in, Values& gradient, auto& made) {
            device->swiGluGradient(viewOf(gradient), viewOf(in[0]), viewOf(in[1]), viewOf(made[0]), viewOf(made[1]));
        });
}

TEST_P(DeviceOperations, gelu)
{
    expectGradient(
        {random.values(1001, 0, 2)}, 1001, [&](auto& in, Values& out) { device->gelu(viewOf(in[0]), viewOf(out)); },
        [&](auto& in, Values& gradient, auto& made) {
            device->geluGradient(viewOf(gradient), viewOf(in[0]), viewOf(made[0]));
        });
}

TEST_P(DeviceOperations, norms)
{
    constexpr std::int64_t kRows = 37;
    constexpr std::int64_t kWidth = 131; // two whole blocks of columns and a rest
    for (const bool mean : {false, true}) {
        const NormShape shape{kRows, kWidth, mean, 1e-5f};
        Values statistics(2 * kRows);
        std::vector<Values> inputs{random.values(kRows * kWidth, 0.3f), random.values(kWidth, 1)};
        if (mean)
            inputs.push_back(random.values(kWidth));
        const auto biasOf = [&](std::vector<Values>& of) { return mean ? viewOf(of[2]) : TensorView{}; };
        expectGradient(
            inputs, kRows * kWidth,
            [&](auto& in, Values& out) {
                device->norm(shape, viewOf(in[0]), viewOf(in[1]), biasOf(in), viewOf(out), viewOf(statistics));
            },
            [&](auto& in, Values& gradient, auto& made) {
                device->normGradient(shape, viewOf(gradient), viewOf(in[0]), viewOf(statistics), viewOf(in[1]),
                                     viewOf(made[0]));
                device->normWeightsGradient(shape, viewOf(gradient), viewOf(in[0]), viewOf(statistics), viewOf(made[1]),
                                            biasOf(made));
            });
    }
}

TEST_P(DeviceOperations, rotate)
{
    const RotaryFrequencies frequencies{{1, 0.4f, 0.16f, 0.06f, 0.03f}, 1.25f};
    const RotateShape shape{2 * 7, 7, 3, 10, &frequencies};
    constexpr std::int64_t kElements = 2 * 7 * 3 * 10;
    expectGradient(
        {random.values(kElements)}, kElements,
        [&](auto& in, Values& out) {
            out = in[0];
            device->rotate(shape, viewOf(out), false);
        },
        [&](auto&, Values& gradient, auto& made) {
            made[0] = gradient;
            device->rotate(shape, viewOf(made[0]), true);
        });
}

TEST_P(DeviceOperations, rotationKeepsLengthsAndPositionZero)
{
    const RotaryFrequencies frequencies{{1, 0.1f, 0.01f, 0.001f}, 1};
    const RotateShape shape{5, 5, 1, 8, &frequencies};
    Values x = random.values(5 * 8);
    const Values before = x;
    device->rotate(shape, viewOf(x), false);
    EXPECT_EQ(Values(x.begin(), x.begin() + 8), Values(before.begin(), before.begin() + 8));
    EXPECT_NE(x, before);
    EXPECT_NEAR(dot(x, x), dot(before, before), 1e-4);
}

TEST_P(DeviceOperations, attention)
{
    // Below, at and above a block of queries (64) and of keys (128); heads that share keys.
    for (const std::int64_t length : {2, 63, 64, 65, 128, 129, 200})
        for (const std::int64_t keyHeads : {1, 2, 4}) {
            const AttentionShape shape{2, length, 4, keyHeads, 6};
            const std::int64_t queries = 2 * length * 4 * 6;
            const std::int64_t keys = 2 * length * keyHeads * 6;
            Values logSumExp(static_cast<std::size_t>(2 * length * 4));
            Values context;
            const auto view = [&](Values& of, std::int64_t heads) { return HeadsView{viewOf(of), 0, heads * 6}; };
            expectGradient(
                {random.values(queries), random.values(keys), random.values(keys)}, static_cast<std::size_t>(queries),
                [&](auto& in, Values& out) {
                    device->attention(shape, view(in[0], 4), view(in[1], keyHeads), view(in[2], keyHeads), view(out, 4),
                                      viewOf(logSumExp));
                    context = out;
                },
                [&](auto& in, Values& gradient, auto& made) {
                    device->attentionGradient(shape,
                                              {view(gradient, 4), view(in[0], 4), view(in[1], keyHeads),
                                               view(in[2], keyHeads), view(context, 4), viewOf(logSumExp),
                                               view(made[0], 4), view(made[1], keyHeads), view(made[2], keyHeads)});
                });
        }
}

TEST_P(DeviceOperations, attentionOfOneTokenIsItsValue)
{
    const AttentionShape shape{3, 1, 2, 2, 5};
    Values q = random.values(30);
    Values k = random.values(30);
    Values v = random.values(30);
    Values context(30);
    Values logSumExp(6);
    const auto view = [](Values& of) { return HeadsView{viewOf(of), 0, 10}; };
    device->attention(shape, view(q), view(k), view(v), view(context), viewOf(logSumExp));
    EXPECT_EQ(context, v);
}

TEST_P(DeviceOperations, sumsOfRowsAndPositionsAndTokens)
{
    // 5 tokens of 2 elements; values that fp32 adds up exactly.
    Values gradient{1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    Values sum(2, -1);
    device->sumRows(viewOf(gradient), viewOf(sum), 5, 2);
    EXPECT_EQ(sum, (Values{25, 30}));
    Values positions(8, -1); // 4 of them, sequences of 3: rows 0 and 3, 1 and 4, 2, none
    device->addPositionsGradient(viewOf(gradient), viewOf(positions), 5, 2, 3, 4);
    EXPECT_EQ(positions, (Values{8, 10, 12, 14, 5, 6, 0, 0}));
    std::vector<std::int64_t> tokens{2, 0, 2, 3, 2};
    Values table(8, -1);
    device->embedGradient(viewOf(gradient), {tokens.data(), 5, DType::Int64}, viewOf(table), 5, 2, 4);
    EXPECT_EQ(table, (Values{3, 4, 0, 0, 15, 18, 7, 8}));
}

TEST_P(DeviceOperations, productsOfEveryForm)
{
    // Whole numbers: fp32 is exact, and so is bf16 up to 256.
    constexpr std::int64_t m = 35, n = 530, k = 19;
    Values a(m * k), b(k * n), at(a.size()), bt(b.size()), expected(m * n, 0);
    for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t l = 0; l < k; ++l)
            at[static_cast<std::size_t>(l * m + i)] = a[static_cast<std::size_t>(i * k + l)] =
                static_cast<float>((i + 2 * l) % 3 - 1);
    for (std::int64_t l = 0; l < k; ++l)
        for (std::int64_t j = 0; j < n; ++j)
            bt[static_cast<std::size_t>(j * k + l)] = b[static_cast<std::size_t>(l * n + j)] =
                static_cast<float>((3 * l + j) % 5 - 2);
    for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t j = 0; j < n; ++j)
            for (std::int64_t l = 0; l < k; ++l)
                expected[static_cast<std::size_t>(i * n + j)] +=
                    a[static_cast<std::size_t>(i * k + l)] * b[static_cast<std::size_t>(l * n + j)];
    const auto castTo = [](const Values& values, DType dtype) {
        std::vector<std::byte> cast(
            static_cast<std::size_t>(bytesOf(static_cast<std::int64_t>(values.size()), dtype).count()));
        convertElements(values.data(), DType::Fp32, cast.data(), dtype, static_cast<std::int64_t>(values.size()));
        return cast;
    };
    for (const DType in : {DType::Fp32, DType::Bf16})
        for (const DType out : {DType::Fp32, DType::Bf16})
            for (const Transpose turnA : {Transpose::No, Transpose::Yes})
                for (const Transpose turnB : {Transpose::No, Transpose::Yes})
                    for (const bool add : {false, true}) {
                        auto left = castTo(turnA == Transpose::No ? a : at, in);
                        auto right = castTo(turnB == Transpose::No ? b : bt, in);
                        auto c = castTo(Values(m * n, 7), out);
                        device->multiply({left.data(), m * k, in}, turnA, {right.data(), k * n, in}, turnB,
                                         {c.data(), m * n, out}, m, n, k, add);
                        Values result(m * n);
                        convertElements(c.data(), out, result.data(), DType::Fp32, m * n);
                        for (std::size_t i = 0; i < result.size(); ++i)
                            ASSERT_EQ(result[i], expected[i] + (add ? 7 : 0)) << i;
                    }
}

TEST_P(DeviceOperations, crossEntropyOfEqualLogits)
{
    constexpr std::int64_t kRows = 3, kVocab = 8;
    Values logits(kRows * kVocab, 100); // far from 0: the maximum is taken off first
    std::vector<std::int64_t> labels{0, 5, 7};
    Values logSumExp(kRows);
    const TensorView view{labels.data(), kRows, DType::Int64};
    EXPECT_NEAR(device->crossEntropy(viewOf(logits), view, viewOf(logSumExp), kRows, kVocab), 3 * std::log(8.0), 1e-4);
    device->crossEntropyGradient(viewOf(logits), view, viewOf(logSumExp), kRows, kVocab, 16);
    for (std::int64_t row = 0; row < kRows; ++row)
        for (std::int64_t j = 0; j < kVocab; ++j)
            EXPECT_NEAR(logits[static_cast<std::size_t>(row * kVocab + j)],
                        j == labels[static_cast<std::size_t>(row)] ? -14 : 2, 1e-3);
}
