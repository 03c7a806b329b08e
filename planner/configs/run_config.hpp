#pragma once

// What a configuration file says, apart from its format: the neutral model that every reader fills and every writer
// starts from.

#include <optional>
#include <string>
#include <vector>

#include "core/json_cursor.hpp"
#include "core/scenario.hpp"

namespace shardwright {

enum class ConfigFormat : std::uint8_t {
    DeepSpeed,                 // ds_config.json, launched by `deepspeed`
    AccelerateFsdp1,           // Accelerate YAML, distributed_type FSDP, fsdp_version 1
    AccelerateFsdp2,           // the same, fsdp_version 2
    AccelerateDeepSpeed,       // Accelerate YAML that names a ds_config.json
    AccelerateDeepSpeedPlugin, // Accelerate YAML with zero_stage and a few more: all else is DeepSpeed's default
    AccelerateDdp              // Accelerate YAML, distributed_type MULTI_GPU (NO for one process)
};
template <> struct EnumNames<ConfigFormat> {
    static constexpr std::array<std::pair<ConfigFormat, std::string_view>, 6> table{
        {{ConfigFormat::DeepSpeed, "deepspeed"},
         {ConfigFormat::AccelerateFsdp1, "accelerate-fsdp1"},
         {ConfigFormat::AccelerateFsdp2, "accelerate-fsdp2"},
         {ConfigFormat::AccelerateDeepSpeed, "accelerate-deepspeed"},
         {ConfigFormat::AccelerateDeepSpeedPlugin, "accelerate-deepspeed-plugin"},
         {ConfigFormat::AccelerateDdp, "accelerate-ddp"}}};
};

/// What configuration files mean by mixed precision.
enum class MixedPrecisionMode : std::uint8_t { No, Fp16, Bf16, Fp8 };
template <> struct EnumNames<MixedPrecisionMode> {
    static constexpr std::array<std::pair<MixedPrecisionMode, std::string_view>, 4> table{
        {{MixedPrecisionMode::No, "no"},
         {MixedPrecisionMode::Fp16, "fp16"},
         {MixedPrecisionMode::Bf16, "bf16"},
         {MixedPrecisionMode::Fp8, "fp8"}}};
};

MixedPrecisionMode mixedPrecisionMode(const Precision& precision);

/// The part of Training that configuration files can speak of. Absent: the file does not say.
struct TrainingSettings {
    std::optional<std::int64_t> microBatch;
    std::optional<std::int64_t> gradientAccumulation;
    std::optional<double> gradientClipping; // 0 = off
    std::optional<MixedPrecisionMode> mixedPrecision;
    std::optional<Checkpointing> checkpointing;
    std::optional<Optimizer> optimizer;

    bool operator==(const TrainingSettings&) const = default;
};

TrainingSettings settingsOf(const Training& training);

/// `base` with everything replaced that `settings` says.
Training applied(const TrainingSettings& settings, Training base);

struct LaunchSettings {
    std::int64_t nodes = 1;
    std::int64_t processes = 0; // over all nodes, one per GPU; 0 = the file does not say

    bool operator==(const LaunchSettings&) const = default;
};

struct RunConfig {
    Strategy strategy;
    TrainingSettings training;
    LaunchSettings launch;
    std::vector<std::string> wrapClasses;    // classes of the blocks that FSDP wraps; empty: Accelerate asks the model
    Json carriedDeepSpeed = Json::object();  // settings without a field here, in their places in ds_config.json
    Json carriedAccelerate = Json::object(); // the same of an Accelerate YAML
};

enum class NoteKind : std::uint8_t {
    Rewritten,  // a deprecated form, and what it became
    Ignored,    // the framework reads it nowhere, or not as written
    Kept,       // known to the framework, kept on export, without effect on a plan
    Automatic,  // "auto": what it was taken for
    InScript,   // a file cannot say it: the training script must
    NotSayable, // neither can: it is lost in this format
    Information
};
template <> struct EnumNames<NoteKind> {
    static constexpr std::array<std::pair<NoteKind, std::string_view>, 7> table{
        {{NoteKind::Rewritten, "rewritten"},
         {NoteKind::Ignored, "ignored"},
         {NoteKind::Kept, "kept"},
         {NoteKind::Automatic, "automatic"},
         {NoteKind::InScript, "in-script"},
         {NoteKind::NotSayable, "not-sayable"},
         {NoteKind::Information, "information"}}};
};

struct ConfigNote {
    NoteKind kind = NoteKind::Information;
    std::string setting; // "limit_all_gathers", "/scheduler"
    std::string text;
};

struct ImportedConfig {
    RunConfig run;
    ConfigFormat format = ConfigFormat::DeepSpeed;
    std::string file;
    std::vector<ConfigNote> notes;
};

/// Adds to `base` what it does not say yet, objects member by member.
void addCarried(Json& base, const Json& carried);

/// A name that tells the options: "deepspeed-zero3-offload-optimizer-cpu", "fsdp2-hybrid-shard".
std::string describeOptions(const StrategyOptions& options);

/// The classes that FSDP wraps for this model: its blocks'.
std::vector<std::string> wrapClassesOf(const Model& model);

/// What a scenario's strategy comes to as a configuration; the classes to wrap are those of the model's blocks.
RunConfig runConfigOf(const Scenario& scenario, const Strategy& strategy);

} // namespace shardwright
