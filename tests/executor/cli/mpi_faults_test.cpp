// Ranks as processes: one of them is killed, stands still or is stopped, and all end with one cause.

#include <csignal>
#include <filesystem>
#include <regex>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "tests/executor/cli/kept_checkpoints.hpp"
#include "tests/executor/cli/program.hpp"
#include "tests/paths.hpp"

namespace shardwright::testing {

namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr const char* kForever = "1000000";
constexpr int kRanks = 4;

class MpiFaults : public ::testing::Test {
protected:
    void SetUp() override
    {
        if (std::string(mpiexecProgram()).empty())
            GTEST_SKIP() << "this build has no MPI";
    }

    /// What shardrun itself says to standard error.
    static std::vector<std::string> said(const Program& program)
    {
        std::vector<std::string> found;
        for (const std::string& line : lines(program.err()))
            if (line.rfind("shardrun: ", 0) == 0)
                found.push_back(line);
        return found;
    }

    static void expectNoneLeft(const std::vector<pid_t>& ranks)
    {
        for (const pid_t rank : ranks)
            EXPECT_TRUE(comesTrue([&] { return rank <= 1 || ::kill(rank, 0) != 0; }))
                << "rank process " << rank << " still runs";
    }

    /// Never to -1, which is everybody.
    static void send(pid_t rank, int number)
    {
        ASSERT_GT(rank, 1) << "no rank's process was found";
        ::kill(rank, number);
    }

    static std::vector<pid_t> ranksOf(const Program& program)
    {
        std::vector<pid_t> ranks;
        for (int rank = 0; rank < kRanks; ++rank)
            ranks.push_back(program.rank(rank));
        return ranks;
    }

    TemporaryFolder m_folder;
};

TEST_F(MpiFaults, ARankKilledAtAnyMomentEndsAll)
{
    // MPI's and the plan's beginning, first weights, steps; then steps that are checkpoints above all.
    for (const bool saves : {false, true})
        for (const std::chrono::milliseconds moment : {0ms, 150ms, 500ms, 1200ms}) {
            const std::string kept = m_folder.file("kept");
            fs::remove_all(kept);
            std::vector<std::string> call{shippedPlan("fsdp1-full-shard-4-ranks"), "--steps", kForever};
            if (saves)
                call.insert(call.end(), {"--checkpoint", kept, "--checkpoint-every", "1"});
            Program program(call, {.mpiRanks = kRanks});
            const std::vector<pid_t> ranks = ranksOf(program);
            ASSERT_GT(ranks[2], 0);
            pause(moment);
            send(ranks[2], SIGKILL);
            ASSERT_TRUE(program.ends(10s)) << moment.count() << " ms";
            EXPECT_NE(program.exitCode(), 0);
            // mpirun's words; of a process that has not come to MPI_Init yet it knows no rank.
            EXPECT_TRUE(
                std::regex_search(program.err(), std::regex("rank 2 .*signal 9|but 1 process returned\\s+a non-zero")))
                << program.err();
            EXPECT_LE(said(program).size(), 1U) << program.err();
            EXPECT_EQ(program.out(), "");
            expectNoneLeft(ranks);
            expectWholeCheckpoints(kept);
        }
}

TEST_F(MpiFaults, ARankThatStandsStillIsNamedOnceAndAllEnd)
{
    for (const int stalled : {0, 2}) {
        Program program({shippedPlan("ddp-4-ranks"), "--steps", kForever}, {.mpiRanks = kRanks});
        const std::vector<pid_t> ranks = ranksOf(program);
        ASSERT_GT(ranks[3], 0);
        pause(1500ms);
        send(ranks[static_cast<std::size_t>(stalled)], SIGSTOP);
        ASSERT_TRUE(program.ends(10s)) << "rank " << stalled;
        EXPECT_NE(program.exitCode(), 0);
        const auto causes = said(program);
        ASSERT_EQ(causes.size(), 1U) << program.err();
        EXPECT_TRUE(std::regex_search(
            causes[0], std::regex("rank " + std::to_string(stalled) + " did not come to .* of group .* within 8 s")))
            << causes[0];
        EXPECT_EQ(program.err().find("Segmentation"), std::string::npos) << program.err();
        expectNoneLeft(ranks);
    }
}

TEST_F(MpiFaults, ARankThatFailsTellsItOnceForAll)
{
    Program program({shippedPlan("nvme-optimizer"), "--steps", kForever, "--nvme", m_folder.path()},
                    {.mpiRanks = 2, .mount = m_folder.path()});
    ASSERT_TRUE(program.ends(10s));
    if (program.couldNotMount())
        GTEST_SKIP() << "this machine lets no test mount a file system (neither root nor user namespaces)";
    EXPECT_EQ(program.exitCode(), 3);
    const auto causes = said(program);
    ASSERT_GE(causes.size(), 1U) << program.err();
    EXPECT_LE(causes.size(), 2U) << program.err(); // both may have met the end of the disk
    for (const std::string& cause : causes)
        EXPECT_TRUE(std::regex_search(cause, std::regex("rank [01]: .*No space left on device"))) << cause;
}

TEST_F(MpiFaults, StoppedRunsGiveWhatWasMeasured)
{
    for (const int number : {SIGINT, SIGTERM})
        for (const bool launcher : {true, false}) {
            const std::string result = m_folder.file("result.json");
            fs::remove(result);
            Program program({shippedPlan("ddp-4-ranks"), "--steps", kForever, "-o", result}, {.mpiRanks = kRanks});
            const std::vector<pid_t> ranks = ranksOf(program);
            ASSERT_GT(ranks[2], 0);
            pause(1500ms);
            if (launcher)
                program.signal(number);
            else
                send(ranks[2], number);
            ASSERT_TRUE(program.ends(10s));
            EXPECT_NE(program.exitCode(), 0);
            EXPECT_EQ(program.out().rfind("stopped early: ", 0), 0U) << program.out() << program.err();
            EXPECT_TRUE(said(program).empty()) << program.err();
            ASSERT_TRUE(fs::exists(result));
            EXPECT_FALSE(Json::parse(m_folder.read("result.json")).at("complete").get<bool>());
            expectNoneLeft(ranks);
        }
}

TEST_F(MpiFaults, StoppedWhileItBeginsEndsToo)
{
    for (const std::chrono::milliseconds moment : {0ms, 100ms, 300ms, 500ms})
        for (const int number : {SIGINT, SIGTERM}) {
            Program program({shippedPlan("ddp-4-ranks"), "--steps", kForever}, {.mpiRanks = kRanks});
            pause(moment);
            program.signal(number);
            ASSERT_TRUE(program.ends(10s)) << moment.count();
            EXPECT_NE(program.exitCode(), 0);
        }
}

TEST_F(MpiFaults, AnotherNumberOfRanksThanThePlansIsTold)
{
    Program program({shippedPlan("ddp-4-ranks"), "--steps", "1"}, {.mpiRanks = 3});
    ASSERT_TRUE(program.ends(10s));
    EXPECT_EQ(program.exitCode(), 2);
    EXPECT_NE(program.err().find("is a plan for 4 ranks, but MPI has 3; expected mpirun -n 4"), std::string::npos);
}

TEST_F(MpiFaults, ARunThatDivergesIsMeasuredToo)
{
    Program program({shippedPlan("ddp-4-ranks"), "--steps", "6", "--learning-rate", "1e20"}, {.mpiRanks = kRanks});
    ASSERT_TRUE(program.ends(10s));
    EXPECT_EQ(program.exitCode(), 0) << program.err();
    EXPECT_NE(program.out().find("nan, "), std::string::npos) << program.out();
}

} // namespace

} // namespace shardwright::testing
