// Files of buffers: what comes back, with and without io_uring, and what a folder that cannot be used says.

#include "executor/engine/nvme_files.hpp"

#include <cstring>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "core/diagnostics.hpp"
#include "executor/engine/block_io.hpp"
#include "tests/temporary_folder.hpp"

namespace shardwright {
namespace {

std::vector<std::byte> patterned(std::int64_t bytes, int seed)
{
    std::vector<std::byte> data(static_cast<std::size_t>(bytes));
    for (std::size_t i = 0; i < data.size(); ++i)
        data[i] = static_cast<std::byte>((i * 131 + i / 257 + static_cast<std::size_t>(seed)) & 0xff);
    return data;
}

// Around one byte, an alignment, a block of 1 MiB, and more blocks than are under way at once.
const std::vector<std::int64_t> kSizes = {0, 1, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1, 11 * (1 << 20) + 12345};

TEST(NvmeFiles, WhatIsWrittenComesBackAndFilesGo)
{
    const TemporaryFolder folder;
    {
        NvmeFiles files(folder.path(), 3);
        std::vector<int> ids;
        for (std::size_t i = 0; i < kSizes.size(); ++i) {
            ids.push_back(files.create(Bytes(kSizes[i])));
            files.write(ids[i], patterned(kSizes[i], static_cast<int>(i)).data(), Bytes(kSizes[i]));
        }
        for (std::size_t i = 0; i < kSizes.size(); ++i) {
            std::vector<std::byte> back(static_cast<std::size_t>(kSizes[i]));
            files.read(ids[i], back.data(), Bytes(kSizes[i]));
            EXPECT_TRUE(back == patterned(kSizes[i], static_cast<int>(i))) << kSizes[i] << ' ' << files.method();
        }
        std::int64_t least = 0;
        for (const std::int64_t size : kSizes)
            least += size;
        EXPECT_GE(files.onDisk().count(), least);
        EXPECT_LT(files.onDisk().count(), least + static_cast<std::int64_t>(kSizes.size()) * kIoAlignment);
        files.remove(ids.back());
        EXPECT_LT(files.onDisk().count(), 3 * (1 << 20));
    }
    EXPECT_TRUE(folder.names().empty());
}

TEST(NvmeFiles, BothWaysOfMovingBlocksAgree)
{
    const TemporaryFolder folder;
    const std::string path = folder.file("file");
    const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ASSERT_GE(descriptor, 0);
    const auto io = makeBlockIo();
    const auto plain = makePlainIo();
    for (const std::int64_t size : kSizes) {
        const std::vector<std::byte> data = patterned(size, 7);
        ASSERT_EQ(io->write(descriptor, data.data(), size), 0);
        std::vector<std::byte> back(data.size());
        ASSERT_EQ(plain->read(descriptor, back.data(), size), 0);
        EXPECT_TRUE(back == data) << io->name() << ' ' << size;
    }
    // A file that ends too early is an error, not zeros.
    ASSERT_EQ(::ftruncate(descriptor, 4096), 0);
    std::vector<std::byte> back(8192);
    EXPECT_NE(plain->read(descriptor, back.data(), 8192), 0);
    EXPECT_NE(io->read(descriptor, back.data(), 8192), 0);
    ::close(descriptor);
}

TEST(NvmeFiles, FoldersThatCannotBeUsedAreNamed)
{
    const TemporaryFolder folder;
    const std::string missing = folder.file("missing");
    try {
        NvmeFiles files(missing, 0);
        FAIL() << "took a folder that is not there";
    } catch (const EnvironmentError& error) {
        EXPECT_NE(std::string(error.what()).find(missing), std::string::npos);
    }
    NvmeFiles files(folder.path(), 0);
    // No disk holds an exbibyte: the file system says so when blocks are reserved, not in the middle of a step.
    EXPECT_THROW(files.create(Bytes(std::int64_t{1} << 60)), EnvironmentError);
}

} // namespace
} // namespace shardwright
