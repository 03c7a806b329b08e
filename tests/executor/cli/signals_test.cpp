// Runs that are killed, stopped and stopped again, at any moment.

#include <csignal>
#include <filesystem>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "executor/state/checkpoint.hpp"
#include "tests/executor/cli/kept_checkpoints.hpp"
#include "tests/executor/cli/program.hpp"

namespace shardwright::testing {

namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr const char* kForever = "1000000";

/// Reading the plan, first weights, steps: milliseconds after the start.
constexpr std::chrono::milliseconds kMoments[] = {0ms, 2ms, 5ms, 10ms, 20ms, 40ms, 80ms, 150ms, 300ms, 600ms};

TEST(Signals, StopARunInEveryPhaseWithWhatWasMeasured)
{
    const TemporaryFolder folder;
    for (const int number : {SIGINT, SIGTERM})
        for (const char* plan : {"ddp-4-ranks", "nvme-all"})
            for (const std::chrono::milliseconds moment : kMoments) {
                const std::string result = folder.file("result.json");
                fs::remove(result);
                Program program({shippedPlan(plan), "--steps", kForever, "--nvme", folder.path(), "-o", result,
                                 "--checkpoint", folder.file("kept"), "--checkpoint-every", "100000"});
                pause(moment);
                program.signal(number);
                ASSERT_TRUE(program.ends(10s)) << plan << " after " << moment.count() << " ms";
                if (program.endedBySignal(number)) // before it knew what to do about it
                    continue;
                EXPECT_EQ(program.exitCode(), 130) << program.err();
                if (program.out().empty()) {
                    EXPECT_EQ(program.err(), "shardrun: stopped before the first step was done\n");
                    EXPECT_FALSE(fs::exists(result));
                    continue;
                }
                EXPECT_EQ(program.err(), "");
                EXPECT_EQ(program.out().rfind("stopped early: ", 0), 0U) << program.out();
                const Json measured = Json::parse(folder.read("result.json"));
                EXPECT_FALSE(measured.at("complete").get<bool>());
                EXPECT_EQ(measured.at("losses").size(), measured.at("steps").get<std::size_t>());
            }
    for (const auto& entry : fs::recursive_directory_iterator(folder.path()))
        EXPECT_EQ(entry.path().string().find("shardrun-rank"), std::string::npos) << entry.path();
}

TEST(Signals, WhileACheckpointIsWrittenItIsWrittenFirst)
{
    const TemporaryFolder folder;
    const std::string kept = folder.file("kept");
    for (int round = 0; round < 5; ++round) {
        fs::remove_all(kept);
        Program program({shippedPlan("fsdp1-full-shard-4-ranks"), "--steps", kForever, "--checkpoint", kept,
                         "--checkpoint-every", "1"});
        ASSERT_TRUE(comesTrue([&] { return fs::exists(kept + "/step-000002"); }));
        pause(std::chrono::milliseconds(3 * round));
        program.signal(SIGTERM);
        ASSERT_TRUE(program.ends(10s));
        EXPECT_EQ(program.exitCode(), 130) << program.err();
        EXPECT_GE(expectWholeCheckpoints(kept), 1);
        for (const auto& entry : fs::recursive_directory_iterator(kept))
            EXPECT_NE(entry.path().extension(), ".part");
    }
}

/// The first one waits for a checkpoint to be whole; who cannot wait asks again.
TEST(Signals, ASecondOneEndsTheProgramAtOnce)
{
    const TemporaryFolder folder;
    const std::string kept = folder.file("kept");
    bool ended = false;
    for (int round = 0; round < 50 && !ended; ++round) {
        Program program({shippedPlan("nvme-all"), "--steps", kForever, "--nvme", folder.path(), "--checkpoint", kept,
                         "--checkpoint-every", "1"});
        const std::string first = kept + "/step-000001/rank-00000-of-00002.safetensors";
        ASSERT_TRUE(comesTrue([&] { return fs::exists(first + ".part") || fs::exists(first); }));
        program.signal(SIGINT);
        pause(2ms);
        program.signal(SIGINT);
        ASSERT_TRUE(program.ends(10s));
        ended = program.endedBySignal(SIGINT); // otherwise the first one was done with by then
        expectWholeCheckpoints(kept);
        fs::remove_all(kept);
    }
    EXPECT_TRUE(ended);
}

TEST(Signals, KilledAtAnyMomentACheckpointIsWholeOrNone)
{
    const TemporaryFolder folder;
    const std::string kept = folder.file("kept");
    const std::vector<std::string> call{
        shippedPlan("fsdp1-full-shard-4-ranks"), "--steps", kForever, "--checkpoint", kept, "--checkpoint-every", "1"};
    int complete = 0;
    for (int round = 0; round < 25; ++round) {
        std::vector<std::string> again = call;
        if (complete > 0)
            again.insert(again.end(), {"--resume", kept});
        Program program(again);
        const int longer = complete > 0 ? 0 : 40 * round; // a busy machine needs longer for its first one
        pause(std::chrono::milliseconds(20 + 37 * round % 200 + longer));
        program.signal(SIGKILL);
        ASSERT_TRUE(program.ends(10s));
        ASSERT_TRUE(program.endedBySignal(SIGKILL)) << program.err();
        const int now = expectWholeCheckpoints(kept);
        EXPECT_GE(now, complete); // those before it stay
        complete = now;
    }
    ASSERT_GT(complete, 0);
    const std::int64_t step = readManifest(checkpointFolder(kept)).step;
    const Ran more = shardrun({call[0], "--steps", "1", "--checkpoint", kept, "--resume", kept});
    EXPECT_EQ(more.exitCode, 0) << more.err;
    EXPECT_EQ(readManifest(checkpointFolder(kept)).step, step + 1);
}

} // namespace

} // namespace shardwright::testing
