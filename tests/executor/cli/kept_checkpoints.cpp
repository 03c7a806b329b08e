#include "tests/executor/cli/kept_checkpoints.hpp"

#include <filesystem>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "executor/state/checkpoint.hpp"
#include "executor/state/safetensors.hpp"

namespace shardwright::testing {

namespace fs = std::filesystem;

namespace {

void expectWhole(const fs::path& path)
{
    if (path.extension() == ".part") // under way when the run ended
        return;
    try {
        if (path.extension() == ".safetensors")
            EXPECT_GE(SafetensorsFile(path.string()).header().tensors.size(), 0U);
        else
            EXPECT_TRUE(parseJson(readTextFile(path.string()), path.string()).is_object());
    } catch (const std::exception& error) {
        ADD_FAILURE() << error.what();
    }
}

void expectCheckpoint(const fs::path& folder)
{
    try {
        for (const CheckpointFile& file : readManifest(folder.string()).files)
            EXPECT_EQ(SafetensorsFile((folder / file.name).string()).checksum(), file.checksum) << folder / file.name;
    } catch (const std::exception& error) {
        ADD_FAILURE() << error.what();
    }
}

} // namespace

int expectWholeCheckpoints(const std::string& folder)
{
    int complete = 0;
    if (!fs::exists(folder))
        return complete;
    for (const auto& step : fs::directory_iterator(folder)) {
        if (!step.is_directory())
            continue; // a trial of whether the folder can be written
        for (const auto& file : fs::directory_iterator(step))
            expectWhole(file.path());
        if (fs::exists(step.path() / "manifest.json")) {
            expectCheckpoint(step.path());
            ++complete;
        }
    }
    return complete;
}

} // namespace shardwright::testing
