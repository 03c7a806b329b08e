// A short calibration of this machine: a cluster file that the planner reads, and a step under it.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/cluster_file.hpp"
#include "core/json_cursor.hpp"
#include "executor/run/calibration.hpp"
#include "tests/temporary_folder.hpp"

namespace shardwright {
namespace {

CalibrationOptions shortly(int ranks, const std::string& nvme = {})
{
    CalibrationOptions options;
    options.ranks = ranks;
    options.nvmeFolder = nvme;
    options.seconds = 0.01;
    return options;
}

TEST(Calibration, everyFigureIsMeasuredAndTheFileIsReadAsItWas)
{
    const TemporaryFolder folder;
    std::vector<std::string> said;
    const Cluster made = calibrate(shortly(2, folder.path()), [&](const std::string& what) { said.push_back(what); });
    EXPECT_TRUE(made.gpu.isHostProcessor());
    EXPECT_EQ(made.gpusPerNode, 2);
    ASSERT_EQ(made.gpu.measuredRates.size(), EnumNames<MeasuredRate>::table.size());
    for (const auto& [rate, figure] : made.gpu.measuredRates) {
        EXPECT_GT(figure.value, 0) << nameOf(rate);
        EXPECT_EQ(figure.tag, Provenance::Measured) << nameOf(rate);
        EXPECT_FALSE(figure.source.empty()) << nameOf(rate);
    }
    EXPECT_GT(made.intraNode.bandwidth.value, 0);
    EXPECT_GT(made.nvmeReadBandwidth.value, 0);
    EXPECT_GT(said.size(), 8U); // each thing measured is said before it is
    for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
        ADD_FAILURE() << entry.path() << " was left behind";

    const std::string file = folder.file("machine.json");
    std::ofstream(file) << toJson(made).dump(2);
    const Cluster read = readCluster(file);
    EXPECT_EQ(toJson(read), toJson(made));
}

TEST(Calibration, anUnusableDriveIsNamed)
{
    try {
        calibrate(shortly(1, "/proc/no-such-folder"));
        FAIL() << "it measured a drive that is not there";
    } catch (const std::runtime_error& error) {
        EXPECT_NE(std::string(error.what()).find("/proc/no-such-folder"), std::string::npos) << error.what();
    }
}

TEST(Calibration, whoeverIsToldOfProgressMayCancel)
{
    struct Cancelled {};
    int said = 0;
    EXPECT_THROW(calibrate(shortly(1),
                           [&](const std::string&) {
                               if (++said == 3)
                                   throw Cancelled{};
                           }),
                 Cancelled);
    EXPECT_EQ(said, 3);
}

} // namespace
} // namespace shardwright
