// Disks that are full, read-only or gone, for buffers, checkpoints and results.

#include <csignal>
#include <filesystem>
#include <optional>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "executor/state/safetensors.hpp"
#include "tests/executor/cli/program.hpp"

namespace shardwright::testing {

namespace {

namespace fs = std::filesystem;

constexpr const char* kForever = "1000000"; // steps: a run that trains before it finds out does not end in time

bool contains(const std::string& text, const std::string& part)
{
    return text.find(part) != std::string::npos;
}

std::size_t linesOf(const std::string& text)
{
    return lines(text).size();
}

/// Runs in a folder of its own with a file system of its own over it; nothing where that cannot be had.
std::optional<Ran> withMount(std::vector<std::string> arguments, Surroundings surroundings)
{
    Program program(arguments, surroundings);
    EXPECT_TRUE(program.ends(std::chrono::seconds(10))) << "still runs";
    if (!program.ends(std::chrono::milliseconds(0)) || program.couldNotMount())
        return std::nullopt;
    return Ran{program.exitCode(), program.out(), program.err()};
}

#define SKIP_WITHOUT_MOUNTS(ran)                                                                                       \
    if (!(ran))                                                                                                        \
    GTEST_SKIP() << "this machine lets no test mount a file system (neither root nor user namespaces)"

TEST(Disks, AFullNvmeFolderIsTold)
{
    const TemporaryFolder folder;
    const auto ran = withMount({shippedPlan("nvme-optimizer"), "--steps", kForever, "--nvme", folder.path()},
                               {.mount = folder.path(), .mountBytes = 1 << 20});
    SKIP_WITHOUT_MOUNTS(ran);
    EXPECT_EQ(ran->exitCode, 3);
    EXPECT_TRUE(contains(ran->err, folder.path() + "/shardrun-rank-")) << ran->err;
    EXPECT_TRUE(contains(ran->err, "No space left on device")) << ran->err;
    EXPECT_EQ(linesOf(ran->err), 1U) << ran->err;
}

TEST(Disks, AReadOnlyNvmeFolderIsTold)
{
    const TemporaryFolder folder;
    const auto ran = withMount({shippedPlan("nvme-optimizer"), "--steps", kForever, "--nvme", folder.path()},
                               {.mount = folder.path(), .mountReadOnly = true});
    SKIP_WITHOUT_MOUNTS(ran);
    EXPECT_EQ(ran->exitCode, 3);
    EXPECT_TRUE(contains(ran->err, folder.path() + ": ")) << ran->err;
    EXPECT_TRUE(contains(ran->err, "Read-only file system")) << ran->err;
    EXPECT_EQ(linesOf(ran->err), 1U) << ran->err;
}

/// What needs no right to mount: the shell's limit of a file's size.
TEST(Disks, FilesThatMayNotGrowAreTold)
{
    const TemporaryFolder folder;
    const Ran nvme = shardrun({shippedPlan("nvme-optimizer"), "--steps", kForever, "--nvme", folder.path()},
                              {.largestFile = 64 << 10});
    EXPECT_EQ(nvme.exitCode, 3);
    EXPECT_TRUE(contains(nvme.err, folder.path() + "/shardrun-rank-")) << nvme.err;
    EXPECT_TRUE(contains(nvme.err, "File too large")) << nvme.err;
    EXPECT_TRUE(fs::is_empty(folder.path()));

    const std::string kept = folder.file("kept");
    const Ran saving = shardrun({shippedPlan("fsdp1-full-shard-4-ranks"), "--steps", "2", "--checkpoint", kept},
                                {.largestFile = 64 << 10});
    EXPECT_EQ(saving.exitCode, 3);
    EXPECT_TRUE(contains(saving.err, kept + "/step-000002/rank-0000")) << saving.err;
    EXPECT_TRUE(contains(saving.err, "File too large")) << saving.err;
    EXPECT_EQ(linesOf(saving.err), 1U) << saving.err;
    EXPECT_FALSE(fs::exists(kept + "/step-000002/manifest.json"));
    for (const auto& entry : fs::directory_iterator(kept + "/step-000002"))
        EXPECT_EQ(entry.path().filename(), "config.json"); // whole: it was smaller than the limit
}

TEST(Disks, ANvmeFolderThatVanishesEndsNothingOrAllWithACause)
{
    for (const char* plan : {"nvme-all", "nvme-optimizer-pipelined"}) {
        const TemporaryFolder folder;
        const std::string nvme = folder.file("nvme");
        fs::create_directories(nvme);
        Program program({shippedPlan(plan), "--steps", kForever, "--nvme", nvme});
        ASSERT_TRUE(comesTrue([&] { return !fs::is_empty(nvme); }));
        pause(std::chrono::milliseconds(700));
        fs::remove_all(nvme);
        if (program.ends(std::chrono::seconds(1))) { // needed a new file
            EXPECT_EQ(program.exitCode(), 3);
            EXPECT_TRUE(contains(program.err(), nvme + "/shardrun-rank-")) << program.err();
            EXPECT_EQ(linesOf(program.err()), 1U) << program.err();
        } else { // its files have no names and stay
            program.signal(SIGTERM);
            ASSERT_TRUE(program.ends(std::chrono::seconds(10)));
            EXPECT_EQ(program.exitCode(), 130) << program.err();
        }
    }
}

TEST(Disks, AKilledRunLeavesNoFilesOfBuffers)
{
    const TemporaryFolder folder;
    Program program({shippedPlan("nvme-optimizer"), "--steps", kForever, "--nvme", folder.path()});
    ASSERT_TRUE(comesTrue([&] { return folder.names().size() == 2; })); // ranks
    pause(std::chrono::milliseconds(500));
    // Another run in the same folder takes nothing away from the first one.
    EXPECT_EQ(shardrun({shippedPlan("nvme-optimizer"), "--steps", "1", "--nvme", folder.path()}).exitCode, 0);
    program.signal(SIGKILL);
    ASSERT_TRUE(program.ends(std::chrono::seconds(10)));
    for (const auto& entry : fs::recursive_directory_iterator(folder.path()))
        EXPECT_TRUE(entry.is_directory()) << entry.path();
}

TEST(Disks, AFullCheckpointFolderIsTold)
{
    const TemporaryFolder folder;
    const auto ran = withMount({shippedPlan("fsdp1-full-shard-4-ranks"), "--steps", "1", "--checkpoint", folder.path()},
                               {.mount = folder.path(), .mountBytes = 128 << 10});
    SKIP_WITHOUT_MOUNTS(ran);
    EXPECT_EQ(ran->exitCode, 3);
    EXPECT_TRUE(contains(ran->err, folder.path() + "/step-000001/")) << ran->err;
    EXPECT_TRUE(contains(ran->err, "No space left on device")) << ran->err;
    EXPECT_EQ(linesOf(ran->err), 1U) << ran->err;
}

TEST(Disks, WhatCannotBeWrittenIsToldBeforeTheTraining)
{
    const TemporaryFolder folder;
    const std::string plan = shippedPlan("ddp-4-ranks");
    fs::create_directories(folder.file("folder"));
    const std::string there = folder.write("there.json", "mine");
    const std::string file = folder.write("file", "");
    const auto refused = [&](const std::vector<std::string>& options, int code, const std::string& said) {
        std::vector<std::string> words{plan, "--steps", kForever};
        words.insert(words.end(), options.begin(), options.end());
        const Ran ran = shardrun(words);
        EXPECT_EQ(ran.exitCode, code) << ran.err;
        EXPECT_TRUE(contains(ran.err, said)) << ran.err;
        EXPECT_EQ(linesOf(ran.err), 1U) << ran.err;
    };
    refused({"-o", folder.file("no/such/folder.json")}, 2, folder.file("no/such") + " is no folder");
    refused({"-o", folder.file("folder"), "--force"}, 2, folder.file("folder") + ": is a folder");
    refused({"-o", there}, 2, there + ": exists already; expected another place, or --force");
    refused({"-o", "/proc/result.json"}, 3, "/proc/result.json: cannot be created: ");
    refused({"--checkpoint", file + "/run"}, 3, file + "/run: cannot be made: Not a directory");
    refused({"--checkpoint", "/proc/run"}, 3, "/proc/run: cannot be made: ");
    refused({"--checkpoint", "/proc"}, 3, "/proc: no file can be made in it: ");
    EXPECT_EQ(folder.read("there.json"), "mine");
    EXPECT_EQ(folder.names(), (std::vector<std::string>{"file", "folder", "there.json"}));
    const auto ran = withMount({plan, "--steps", kForever, "--checkpoint", folder.path()},
                               {.mount = folder.path(), .mountReadOnly = true});
    SKIP_WITHOUT_MOUNTS(ran);
    EXPECT_EQ(ran->exitCode, 3);
    EXPECT_TRUE(contains(ran->err, folder.path() + ": no file can be made in it: Read-only file system")) << ran->err;
}

TEST(Disks, PlansWithoutNvmeNeedNoFolderForIt)
{
    for (const char* plan : {"zero3-buckets", "zero2-offload", "mics"})
        EXPECT_EQ(shardrun({shippedPlan(plan), "--steps", "1"}).exitCode, 0) << plan;
}

TEST(Disks, ResultsGoToDevicesAsTheyAre)
{
    const Ran ran = shardrun({shippedPlan("ddp-4-ranks"), "--steps", "1", "-o", "/dev/stdout"});
    EXPECT_EQ(ran.exitCode, 0) << ran.err;
    EXPECT_TRUE(contains(ran.out, "\"kind\": \"shardwright-measurement\"")) << ran.out;
}

TEST(Disks, OutputThatCannotBeSaidIsAFailure)
{
    const std::vector<std::string> call{shippedPlan("ddp-4-ranks"), "--steps", "1"};
    const Ran full = shardrun(call, {.outputTo = "/dev/full"});
    EXPECT_EQ(full.exitCode, 3);
    EXPECT_EQ(full.err, "shardrun: cannot write to standard output: No space left on device\n");
    const Ran closed = shardrun(call, {.closedOutput = true});
    EXPECT_EQ(closed.exitCode, 3);
    EXPECT_EQ(closed.err, "shardrun: cannot write to standard output: Bad file descriptor\n");
    EXPECT_EQ(shardrun({"no such plan"}, {.closedError = true}).exitCode, 2);
    // What is said must not go into files that got the closed streams' numbers.
    const TemporaryFolder folder;
    const std::string kept = folder.file("kept");
    shardrun({call[0], "--steps", "1", "--checkpoint", kept, "-o", folder.file("result.json")},
             {.closedOutput = true, .closedError = true});
    EXPECT_EQ(Json::parse(folder.read("result.json")).at("steps"), 1);
    EXPECT_GT(SafetensorsFile(kept + "/step-000001/rank-00000-of-00004.safetensors").header().tensors.size(), 0U);
}

} // namespace

} // namespace shardwright::testing
