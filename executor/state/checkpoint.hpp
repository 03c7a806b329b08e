#pragma once

// Checkpoints: a folder with a manifest that is written last. Sharded: every rank its file of pieces. Full: files with
// Hugging Face names that no rank count is in. Either is read by any number of ranks under any strategy: pieces are
// found by tensor and element. Error feedback of 1-bit compression belongs to a number of ranks: where that one does
// not go on, it begins at zero, as DeepSpeed's does after every load.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/model.hpp"
#include "executor/comm/transport.hpp"
#include "executor/state/training_state.hpp"

namespace shardwright {

constexpr int kCheckpointFormat = 2;

enum class CheckpointKind : std::uint8_t { Sharded, Full };
template <> struct EnumNames<CheckpointKind> {
    static constexpr std::array<std::pair<CheckpointKind, std::string_view>, 2> table{
        {{CheckpointKind::Sharded, "sharded"}, {CheckpointKind::Full, "full"}}};
};

struct CheckpointFile {
    std::string name; // within the folder
    std::int64_t bytes = 0;
    std::uint32_t checksum = 0; // CRC-32 of the tensors' bytes
};

struct CheckpointManifest {
    CheckpointKind kind = CheckpointKind::Sharded;
    std::int64_t step = 0;
    std::string modelId;
    std::vector<CheckpointFile> files;
    std::map<std::string, std::vector<std::int64_t>> shapes; // of the model's tensors
};

/// Saves `state` of all ranks: collective. The folder is made; until its manifest is there, it is no checkpoint.
/// `modelConfig`: text of the model's config.json, which lies beside the weights as Hugging Face has it.
/// EnvironmentError on the rank whose disk fails; the others get TransportError.
void saveCheckpoint(const std::string& folder, const Model& model, const std::string& modelConfig,
                    const TrainingState& state, Transport& transport);

/// The checkpoint that `path` means: the folder itself, or of the folders "step-..." in it the latest complete one.
/// InputError where there is none.
std::string checkpointFolder(const std::string& path);

/// Reads the manifest and holds every file to its size. InputError names what is missing, cut or of another version.
CheckpointManifest readManifest(const std::string& folder);

/// Fills the pieces of `state` (values, and step) from the checkpoint. InputError names a file whose bytes changed, a
/// tensor that is missing or of another shape.
void loadCheckpoint(const std::string& folder, const Model& model, TrainingState& state);

/// Writes the checkpoint in `from` as one of the other kind into `to`: full, or sharded for `ranks` ranks.
void convertCheckpoint(const std::string& from, const std::string& to, CheckpointKind kind, int ranks);

/// "step-000020": where the checkpoint of a step goes within a run's folder.
std::string stepFolder(std::int64_t step);

} // namespace shardwright
