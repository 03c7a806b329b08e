// Optimizer steps against their formulas in double precision, written out here a second time, and what 16-bit storage
// does to them.

#include "executor/engine/optimizer.hpp"

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "executor/elements.hpp"

namespace shardwright {
namespace {

struct State {
    std::vector<float> p, g, m, v;
};

State start(std::size_t count)
{
    State state{std::vector<float>(count), std::vector<float>(count), std::vector<float>(count),
                std::vector<float>(count)};
    for (std::size_t i = 0; i < count; ++i)
        state.p[i] = std::sin(static_cast<float>(i) + 0.3F);
    return state;
}

float gradientAt(std::size_t i, int step)
{
    return std::cos(static_cast<float>(i) * 0.7F + static_cast<float>(step));
}

void run(State& state, Optimizer optimizer, const OptimizerSettings& settings, int steps)
{
    for (int step = 1; step <= steps; ++step) {
        for (std::size_t i = 0; i < state.g.size(); ++i)
            state.g[i] = gradientAt(i, step);
        OptimizerRun each;
        each.parameter = state.p.data();
        each.gradient = state.g.data();
        each.moment[0] = optimizer == Optimizer::Sgd ? nullptr : state.m.data();
        each.moment[1] = optimizer == Optimizer::AdamW || optimizer == Optimizer::Adam ? state.v.data() : nullptr;
        each.count = static_cast<std::int64_t>(state.p.size());
        each.decays = true;
        stepElements(each, optimizer, settings, step);
    }
}

constexpr std::size_t kCount = 2500; // more than two chunks, and no multiple of one

TEST(Optimizer, AdamFormsFollowTheirPapers)
{
    const OptimizerSettings settings{0.01, 0.9, 0.95, 1e-8, 0.1};
    for (const Optimizer optimizer : {Optimizer::AdamW, Optimizer::Adam}) {
        State state = start(kCount);
        const State first = state;
        run(state, optimizer, settings, 3);
        for (std::size_t i = 0; i < kCount; ++i) {
            double p = first.p[i];
            double m = 0;
            double v = 0;
            for (int step = 1; step <= 3; ++step) {
                const double g = gradientAt(i, step) + (optimizer == Optimizer::Adam ? 0.1 * p : 0);
                m = 0.9 * m + 0.1 * g;
                v = 0.95 * v + 0.05 * g * g;
                const double corrected = m / (1 - std::pow(0.9, step));
                const double spread = std::sqrt(v / (1 - std::pow(0.95, step)));
                p -= 0.01 * (corrected / (spread + 1e-8) + (optimizer == Optimizer::AdamW ? 0.1 * p : 0));
            }
            ASSERT_NEAR(state.p[i], p, 1e-5) << nameOf(optimizer) << ' ' << i;
        }
    }
}

TEST(Optimizer, SgdAndLionFollowTheirs)
{
    const OptimizerSettings settings{0.01, 0.9, 0.99, 1e-8, 0.1};
    for (const Optimizer optimizer : {Optimizer::Sgd, Optimizer::SgdMomentum, Optimizer::Lion}) {
        State state = start(kCount);
        const State first = state;
        run(state, optimizer, settings, 3);
        for (std::size_t i = 0; i < kCount; ++i) {
            double p = first.p[i];
            double m = 0;
            for (int step = 1; step <= 3; ++step) {
                const double g = gradientAt(i, step);
                if (optimizer == Optimizer::Lion) {
                    const double c = 0.9 * m + 0.1 * g;
                    p -= 0.01 * ((c > 0 ? 1 : c < 0 ? -1 : 0) + 0.1 * p);
                    m = 0.99 * m + 0.01 * g;
                } else {
                    const double change = g + 0.1 * p;
                    m = optimizer == Optimizer::Sgd || step == 1 ? change : 0.9 * m + change;
                    p -= 0.01 * m;
                }
            }
            ASSERT_NEAR(state.p[i], p, 1e-5) << nameOf(optimizer) << ' ' << i;
        }
    }
}

TEST(Optimizer, SixteenBitParametersAreSteppedInFp32AndRoundedOnce)
{
    const OptimizerSettings settings{0.01, 0.9, 0.95, 1e-8, 0};
    std::vector<std::uint16_t> p{bf16Of(1.0F), bf16Of(-2.0F)};
    const std::vector<std::uint16_t> g{bf16Of(1.0F), bf16Of(1.0F)};
    std::vector<float> m(2);
    std::vector<float> v(2);
    OptimizerRun each;
    each.parameter = p.data();
    each.parameterType = DType::Bf16;
    each.gradient = g.data();
    each.gradientType = DType::Bf16;
    each.moment[0] = m.data();
    each.moment[1] = v.data();
    each.count = 2;
    stepElements(each, Optimizer::AdamW, settings, 1);
    // The first step of Adam is the learning rate against the gradient's sign.
    EXPECT_EQ(p[0], bf16Of(0.99F));
    EXPECT_EQ(p[1], bf16Of(-2.01F));
    EXPECT_FLOAT_EQ(m[0], 0.1F);
}

TEST(Optimizer, VectorsDoNotDecay)
{
    const OptimizerSettings settings{0.01, 0.9, 0.95, 1e-8, 0.5};
    float p = 1;
    const float g = 0;
    OptimizerRun each;
    each.parameter = &p;
    each.gradient = &g;
    each.count = 1;
    stepElements(each, Optimizer::Sgd, settings, 1);
    EXPECT_EQ(p, 1.0F);
    each.decays = true;
    stepElements(each, Optimizer::Sgd, settings, 1);
    EXPECT_FLOAT_EQ(p, 0.995F);
}

} // namespace
} // namespace shardwright
