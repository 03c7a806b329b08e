// What shardrun says of runs that are too short to be laid beside their plan, and of those that are just long enough.

#include <filesystem>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "tests/executor/cli/program.hpp"

namespace shardwright::testing {
namespace {

namespace fs = std::filesystem;

class Judging : public ::testing::Test {
protected:
    static Ran run(const std::string& plan, std::vector<std::string> arguments)
    {
        arguments.insert(arguments.begin(), {shippedPlan(plan), "--strict"});
        return shardrun(arguments);
    }

    static void expectJudged(const Ran& ran)
    {
        EXPECT_EQ(ran.exitCode, 0) << ran.out << ran.err;
        EXPECT_EQ(ran.out.find("not judged"), std::string::npos) << ran.out;
    }
    static void expectNeeds(const Ran& ran, const std::string& steps)
    {
        EXPECT_EQ(ran.exitCode, 1) << ran.err;
        EXPECT_NE(ran.out.find("not judged: needs " + steps + " steps"), std::string::npos) << ran.out;
        EXPECT_EQ(ran.out.find("OUT"), std::string::npos) << ran.out;
    }

    TemporaryFolder m_folder;
};

/// Adam's moments are made in the first step: what that one held is not what a plan is of.
TEST_F(Judging, TheFirstStepIsNotOneThatPlansDescribe)
{
    expectNeeds(run("ddp-4-ranks", {"--steps", "1"}), "2");
    expectJudged(run("ddp-4-ranks", {"--steps", "2"}));
}

/// A checkpoint holds what the first steps made.
TEST_F(Judging, OneStepIsEnoughAfterACheckpoint)
{
    const std::string kept = m_folder.file("kept");
    expectJudged(run("ddp-4-ranks", {"--steps", "2", "--checkpoint", kept}));
    expectJudged(run("ddp-4-ranks", {"--steps", "1", "--resume", kept}));
}

/// The first compressed step makes the error feedback.
TEST_F(Judging, OneBitAdamIsJudgedFromItsSecondCompressedStep)
{
    expectNeeds(run("zero0-onebit", {"--warm-up-steps", "2", "--steps", "2"}), "4");
    expectNeeds(run("zero0-onebit", {"--warm-up-steps", "2", "--steps", "3"}), "4");
    expectJudged(run("zero0-onebit", {"--warm-up-steps", "2", "--steps", "4"}));
}

/// Without --strict too few steps are told and no failure.
TEST_F(Judging, WithoutStrictARunTellsAndSucceeds)
{
    const Ran ran = shardrun({shippedPlan("ddp-4-ranks"), "--steps", "1"});
    EXPECT_EQ(ran.exitCode, 0) << ran.err;
    EXPECT_NE(ran.out.find("not judged"), std::string::npos) << ran.out;
}

/// Two steps judge every plan but one that has to warm up: none of its figures is called out of tolerance.
TEST_F(Judging, AFolderOfPlansIsJudgedInTwoSteps)
{
    for (const char* plan : {"ddp-4-ranks", "zero3-buckets", "zero2-offload"})
        fs::copy(shippedPlan(plan), m_folder.file(std::string(plan) + ".plan.json"));
    const Ran two = shardrun({"validate-all", m_folder.path(), "--steps", "2"});
    EXPECT_EQ(two.exitCode, 0) << two.out << two.err;
    EXPECT_NE(two.out.find("3 of 3 plans within tolerance, "), std::string::npos) << two.out;

    fs::copy(shippedPlan("zero0-onebit"), m_folder.file("zero0-onebit.plan.json"));
    const Ran withOneBit = shardrun({"validate-all", m_folder.path(), "--steps", "2"});
    EXPECT_EQ(withOneBit.exitCode, 1);
    EXPECT_NE(withOneBit.out.find("3 of 4 plans within tolerance, 1 not judged"), std::string::npos) << withOneBit.out;
    EXPECT_NE(withOneBit.out.find("not judged: needs 4 steps"), std::string::npos) << withOneBit.out;
    const Ran four = shardrun({"validate-all", m_folder.path(), "--steps", "4"});
    EXPECT_EQ(four.exitCode, 0) << four.out << four.err;
}

} // namespace
} // namespace shardwright::testing
