// Dropout: its generator against published values, its shares, and its independence of how a tensor is cut.

#include <cmath>

#include <gtest/gtest.h>

#include "executor/layers/device.hpp"

using namespace shardwright;

namespace {

using Four = std::array<std::uint32_t, 4>;

std::vector<float> dropped(const Dropout& dropout, std::int64_t rows, std::int64_t width, std::int64_t length,
                           int threads = 1)
{
    std::vector<float> x(static_cast<std::size_t>(rows * width), 1.0f);
    const TensorView view{x.data(), rows * width, DType::Fp32};
    makeHostDevice(threads)->dropout(dropout, view, view, rows, width, length);
    return x;
}

} // namespace

/// Known answers of the authors' library Random123 (tests/kat_vectors, "philox4x32 10").
TEST(Philox, givesTheKnownAnswers)
{
    EXPECT_EQ(philox({0, 0, 0, 0}, 0), (Four{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    EXPECT_EQ(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, 0xffffffffffffffff),
              (Four{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
    EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822),
              (Four{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

/// Of n elements, a share p goes, within five standard deviations; what stays is scaled so that the mean stays.
TEST(Dropout, dropsTheShareItShould)
{
    for (const float probability : {0.1f, 0.5f, 0.9f}) {
        const std::vector<float> x = dropped({probability, 7, 3}, 500, 200, 50);
        const auto n = static_cast<double>(x.size());
        double gone = 0;
        for (const float value : x) {
            if (value == 0)
                ++gone;
            else
                ASSERT_FLOAT_EQ(value, 1 / (1 - probability));
        }
        const auto p = static_cast<double>(probability);
        EXPECT_NEAR(gone / n, p, 5 * std::sqrt(p * (1 - p) / n));
    }
}

TEST(Dropout, rowsColumnsAndSequencesDrawApart)
{
    const auto differ = [](const std::vector<float>& left, const std::vector<float>& right) {
        std::size_t count = 0;
        for (std::size_t i = 0; i < left.size(); ++i)
            count += left[i] != right[i] ? 1 : 0;
        return static_cast<double>(count) / static_cast<double>(left.size());
    };
    const Dropout half{0.5f, 7, 3};
    const std::vector<float> x = dropped(half, 100, 128, 50);
    const std::vector<float> rowLater(x.begin() + 128, x.end());
    EXPECT_NEAR(differ({x.begin(), x.end() - 128}, rowLater), 0.5, 0.03);
    EXPECT_NEAR(differ({x.begin(), x.end() - 1}, {x.begin() + 1, x.end()}), 0.5, 0.03);
    EXPECT_NEAR(differ(x, dropped({0.5f, 8, 3}, 100, 128, 50)), 0.5, 0.03);
    // The second sequence is the first of a micro-batch that begins with it.
    const std::vector<float> second = dropped({0.5f, 7, 4}, 50, 128, 50);
    EXPECT_EQ(std::vector<float>(x.begin() + 50 * 128, x.end()), second);
    EXPECT_EQ(x, dropped(half, 100, 128, 50, 3));
}
