#pragma once

// How far measured step times have been from predicted ones, by kind of setting: learnt from the published figures of
// scenarios/published/, so that a prediction can say how sure it is.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/cluster.hpp"
#include "core/enum_names.hpp"
#include "core/strategy.hpp"

namespace shardwright {

enum class StepFamily : std::uint8_t { PyTorch, DeepSpeed, Megatron };
template <> struct EnumNames<StepFamily> {
    static constexpr std::array<std::pair<StepFamily, std::string_view>, 3> table{
        {{StepFamily::PyTorch, "pytorch"}, // DDP, FSDP1, FSDP2, and the plain schedule of shardrun
         {StepFamily::DeepSpeed, "deepspeed"},
         {StepFamily::Megatron, "megatron"}}};
};

/// What makes runs alike in how their time is to be told.
struct StepSetting {
    StepFamily family = StepFamily::PyTorch;
    bool manyNodes = false;
    bool offload = false;       // of parameters or optimizer, to host memory or NVMe
    bool modelParallel = false; // tensor, pipeline, context or expert parallel

    bool operator==(const StepSetting&) const = default;
};

inline constexpr std::size_t kStepSettings = 3 * 2 * 2 * 2;

StepSetting stepSettingOf(const Strategy& strategy, const Cluster& cluster);

/// In 0 .. kStepSettings - 1.
std::size_t indexOf(const StepSetting& setting);

/// The inverse of indexOf.
StepSetting stepSettingAt(std::size_t index);

/// "deepspeed, many nodes, offload".
std::string nameOf(const StepSetting& setting);

/// Whose runs the band was learnt from.
enum class BandOrigin : std::uint8_t { Own, Similar, All, Assumed };
template <> struct EnumNames<BandOrigin> {
    static constexpr std::array<std::pair<BandOrigin, std::string_view>, 4> table{
        {{BandOrigin::Own, "own"},           // runs of this setting
         {BandOrigin::Similar, "similar"},   // none; runs alike in offload and model parallelism
         {BandOrigin::All, "all"},           // nor these; all runs
         {BandOrigin::Assumed, "assumed"}}}; // nor any
};

/// Factors on the predicted seconds between which measured seconds are to be expected; low <= 1 <= high.
struct StepBand {
    double low = 0.5;
    double high = 2;
    std::int64_t rows = 0; // measured runs it was learnt from
    BandOrigin origin = BandOrigin::Assumed;
};

const StepBand& stepBand(const StepSetting& setting);

/// The table behind it, by indexOf(): planner/step_band_table.cpp, which build/bin/tools/update_ledger writes.
extern const std::array<StepBand, kStepSettings> kStepBandTable;

} // namespace shardwright
