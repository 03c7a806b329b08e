#include "tests/golden.hpp"
#include "tests/paths.hpp"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <gtest/gtest.h>

namespace shardwright::testing {

void expectGolden(const std::string& path, const std::string& text)
{
    const std::filesystem::path file = std::filesystem::path(inSource("tests")) / path;
    if (std::getenv("SHARDWRIGHT_UPDATE_GOLDEN") != nullptr) {
        std::filesystem::create_directories(file.parent_path());
        std::ofstream(file, std::ios::binary) << text;
        return;
    }
    std::ifstream stream(file, std::ios::binary);
    ASSERT_TRUE(stream) << file << " is missing: run the test once with SHARDWRIGHT_UPDATE_GOLDEN=1";
    std::ostringstream expected;
    expected << stream.rdbuf();
    EXPECT_EQ(expected.str(), text) << "differs from " << file;
}

} // namespace shardwright::testing
