#include "executor/layers/rotary.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace shardwright {

namespace {

/// theta^(-2 j / d).
std::vector<double> plain(double theta, std::int64_t d)
{
    std::vector<double> each;
    for (std::int64_t j = 0; j < d / 2; ++j)
        each.push_back(1.0 / std::pow(theta, 2.0 * static_cast<double>(j) / static_cast<double>(d)));
    return each;
}

/// Neural tangent kernel scaling: beyond the context length, the base grows so that the slowest frequency is stretched
/// by the factor and the fastest stays.
double dynamicTheta(double theta, const RopeScaling& rope, std::int64_t d, std::int64_t length)
{
    if (length <= rope.originalPositions)
        return theta;
    const double longer = static_cast<double>(length) / static_cast<double>(rope.originalPositions);
    const auto head = static_cast<double>(d);
    return theta * std::pow(rope.factor * longer - (rope.factor - 1), head / (head - 2));
}

/// Frequencies that turn often within the original context stay, those that turn seldom are stretched, between the two
/// bounds the share `kept` of them stays.
double blended(double frequency, double factor, double kept)
{
    return frequency * (kept + (1 - kept) / factor);
}

/// By turns within the original context.
void stretchLlama3(std::vector<double>& each, const RopeScaling& rope)
{
    for (double& frequency : each) {
        const double turns = static_cast<double>(rope.originalPositions) * frequency / (2 * std::numbers::pi);
        const double kept = (turns - rope.lowFrequency) / (rope.highFrequency - rope.lowFrequency);
        frequency = blended(frequency, rope.factor, std::clamp(kept, 0.0, 1.0));
    }
}

/// By the element's place between those that turn betaFast and betaSlow times (arXiv 2309.00071 sec. 3.2).
void stretchYarn(std::vector<double>& each, const RopeScaling& rope, double theta, std::int64_t d)
{
    const auto elementThatTurns = [&](double times) {
        const double length = static_cast<double>(rope.originalPositions) / (times * 2 * std::numbers::pi);
        return static_cast<double>(d) * std::log(length) / (2 * std::log(theta));
    };
    double first = elementThatTurns(rope.betaFast);
    double last = elementThatTurns(rope.betaSlow);
    if (rope.truncate) {
        first = std::floor(first);
        last = std::ceil(last);
    }
    first = std::max(first, 0.0);
    last = std::min(last, static_cast<double>(d - 1));
    constexpr double kLeastSpan = 0.001; // as transformers has it where the two bounds are one
    const double span = first == last ? kLeastSpan : last - first;
    for (std::size_t j = 0; j < each.size(); ++j)
        each[j] = blended(each[j], rope.factor, 1 - std::clamp((static_cast<double>(j) - first) / span, 0.0, 1.0));
}

} // namespace

RotaryFrequencies rotaryFrequencies(const Architecture& architecture, std::int64_t length)
{
    const Numerics& n = architecture.numerics;
    const std::int64_t d = architecture.headDim;
    const double theta = n.rope.kind == RopeKind::Dynamic ? dynamicTheta(n.ropeTheta, n.rope, d, length) : n.ropeTheta;
    std::vector<double> each = plain(theta, d);
    switch (n.rope.kind) {
    case RopeKind::Default:
    case RopeKind::Dynamic: break;
    case RopeKind::Linear:
        for (double& frequency : each)
            frequency /= n.rope.factor;
        break;
    case RopeKind::Llama3: stretchLlama3(each, n.rope); break;
    case RopeKind::Yarn: stretchYarn(each, n.rope, theta, d); break;
    }
    return {{each.begin(), each.end()}, static_cast<float>(n.rope.attentionFactor)};
}

} // namespace shardwright
