#include "planner/published/residual_bands.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "planner/published/statistics.hpp"

namespace shardwright {

namespace {

constexpr double kLowQuantile = 0.05;
constexpr double kHighQuantile = 0.95;

/// With fewer runs than this the 5 % and 95 % quantiles are hardly more than the extremes of what happened to be
/// measured.
constexpr std::int64_t kEnoughRuns = 20;

/// How much wider, in logarithms, a band is that was learnt from other settings. Nothing tells how much is right:
/// assumed.
constexpr double kSimilarStretch = 1.5;
constexpr double kAllStretch = 2;

/// Of logarithms of measured over predicted seconds; 0 is the prediction.
struct Span {
    double low = 0;
    double high = 0;

    void stretch(double factor)
    {
        low *= factor;
        high *= factor;
    }
    void include(const Span& other)
    {
        low = std::min(low, other.low);
        high = std::max(high, other.high);
    }
};

Span spanOf(const std::vector<double>& residuals)
{
    return {std::min(0.0, quantileOf(residuals, kLowQuantile)), std::max(0.0, quantileOf(residuals, kHighQuantile))};
}

bool isSimilar(const StepSetting& a, const StepSetting& b)
{
    return a.offload == b.offload && a.modelParallel == b.modelParallel;
}

template <typename Takes> std::vector<double> residualsOf(const std::vector<LedgerRow>& rows, const Takes& takes)
{
    std::vector<double> residuals;
    for (const LedgerRow& row : rows)
        if (quantityOf(row.figure.kind) == LedgerQuantity::Time && row.figure.counts() && takes(row.setting))
            residuals.push_back(std::log(row.figure.published / *row.figure.predicted));
    return residuals;
}

StepBand bandOf(const Span& span, std::size_t runs, BandOrigin origin)
{
    return {std::exp(span.low), std::exp(span.high), static_cast<std::int64_t>(runs), origin};
}

} // namespace

std::array<StepBand, kStepSettings> learnStepBands(const std::vector<LedgerRow>& rows)
{
    const std::vector<double> all = residualsOf(rows, [](const StepSetting&) { return true; });
    std::array<StepBand, kStepSettings> bands;
    for (std::size_t i = 0; i < kStepSettings; ++i) {
        const StepSetting setting = stepSettingAt(i);
        const auto own = residualsOf(rows, [&](const StepSetting& other) { return other == setting; });
        const auto similar = residualsOf(rows, [&](const StepSetting& other) { return isSimilar(other, setting); });
        if (!own.empty()) {
            Span span = spanOf(own);
            if (static_cast<std::int64_t>(own.size()) < kEnoughRuns)
                span.include(spanOf(similar));
            bands[i] = bandOf(span, own.size(), BandOrigin::Own);
        } else if (!similar.empty()) {
            Span span = spanOf(similar);
            span.stretch(kSimilarStretch);
            bands[i] = bandOf(span, similar.size(), BandOrigin::Similar);
        } else if (!all.empty()) {
            Span span = spanOf(all);
            span.stretch(kAllStretch);
            bands[i] = bandOf(span, all.size(), BandOrigin::All);
        }
    }
    return bands;
}

std::string stepBandSource(const std::array<StepBand, kStepSettings>& bands)
{
    constexpr double kStep = 1000; // of the third decimal
    const auto originName = [](BandOrigin origin) {
        switch (origin) {
        case BandOrigin::Own: return "Own";
        case BandOrigin::Similar: return "Similar";
        case BandOrigin::All: return "All";
        case BandOrigin::Assumed: break;
        }
        return "Assumed";
    };
    std::string text =
        "// Written by build/bin/tools/update_ledger from the residuals of the published step times; not "
        "by hand.\n\n#include \"planner/step_band.hpp\"\n\nnamespace shardwright {\n\n"
        "// clang-format off\nconst std::array<StepBand, kStepSettings> kStepBandTable{{\n";
    for (std::size_t i = 0; i < kStepSettings; ++i)
        text += fmt::format("    {{{:.3f}, {:.3f}, {}, BandOrigin::{}}}, // {}\n",
                            std::floor(bands[i].low * kStep) / kStep, std::ceil(bands[i].high * kStep) / kStep,
                            bands[i].rows, originName(bands[i].origin), nameOf(stepSettingAt(i)));
    return text + "}};\n// clang-format on\n\n} // namespace shardwright\n";
}

} // namespace shardwright
