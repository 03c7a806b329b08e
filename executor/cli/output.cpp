#include "executor/cli/output.hpp"

#include "core/diagnostics.hpp"
#include "executor/state/durable_file.hpp"

namespace shardwright::cli {

void requireOutput(const std::string& path, bool replace)
{
    if (isFileThere(path) && !replace)
        throw InputError(path, "", "exists already", "another place, or --force to replace it");
    requireWritable(path);
}

} // namespace shardwright::cli
