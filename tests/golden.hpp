#pragma once

// Golden files: what a text must be, as a file under tests/ that a person has read. With SHARDWRIGHT_UPDATE_GOLDEN=1
// in the environment the files are written instead of compared; read the difference before committing it.

#include <string>

namespace shardwright::testing {

/// Expects `text` to equal the file tests/<path>.
void expectGolden(const std::string& path, const std::string& text);

} // namespace shardwright::testing
