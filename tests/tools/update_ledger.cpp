// Writes what is committed of the accuracy ledger: scenarios/ledger/baseline.json, which a test holds the ledger to,
// and planner/step_band_table.cpp, the bands that step times are given with. Run it in the repository's root. What has
// become worse is told, and nothing is written unless --loosen says that it is meant.
//   update_ledger [--loosen]

#include <filesystem>
#include <fstream>
#include <string>

#include <fmt/format.h>

#include "core/catalogue.hpp"
#include "core/diagnostics.hpp"
#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"
#include "planner/published/baseline.hpp"
#include "planner/published/residual_bands.hpp"
#include "planner/report/result_json.hpp"

namespace {

using namespace shardwright;
namespace fs = std::filesystem;

void write(const fs::path& path, const std::string& text)
{
    fs::create_directories(path.parent_path());
    std::ofstream out(path);
    out << text;
    if (!out.flush())
        throw EnvironmentError(path.string() + " cannot be written");
    fmt::print("{}\n", path.string());
}

int update(bool loosen)
{
    const Ledger ledger = *predictLedger(ledgerFiles());
    const std::string file = baselineFile();
    if (fs::exists(file)) {
        const auto worse = worseThan(baselineFromJson(parseJson(readTextFile(file), file), file), ledger);
        for (const std::string& line : worse)
            fmt::print(stderr, "{}\n", line);
        if (!worse.empty() && !loosen) {
            fmt::print(stderr, "worse than what is committed; nothing is written without --loosen\n");
            return 1;
        }
    }
    write(file, jsonText(toJson(baselineOf(ledger))) + '\n');
    write(fs::path(homeFolder()) / "planner" / "step_band_table.cpp", stepBandSource(learnStepBands(ledger.rows)));
    return 0;
}

} // namespace

int main(int argc, char** argv)
{
    try {
        const bool loosen = argc == 2 && std::string(argv[1]) == "--loosen";
        if (argc > 1 && !loosen) {
            fmt::print(stderr, "usage: update_ledger [--loosen]\n");
            return 2;
        }
        return update(loosen);
    } catch (const std::exception& error) {
        fmt::print(stderr, "{}\n", error.what());
        return 3;
    }
}
