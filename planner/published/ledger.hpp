#pragma once

// The accuracy ledger: every published figure beside its prediction, with the errors of each source, memory and time
// apart.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "planner/published/comparison.hpp"
#include "planner/step_band.hpp"

namespace shardwright {

/// What a figure is counted under. Verdicts ("fits", "out of memory") are told right or wrong.
enum class LedgerQuantity : std::uint8_t { Memory, Time, Verdict, Other };
LedgerQuantity quantityOf(MeasuredKind kind);

struct LedgerRow {
    std::string source; // file of scenarios/published/ without its ending
    StepSetting setting;
    FigureComparison figure;
};

/// Errors of the figures of one quantity; errors are those of figures that count().
struct ErrorStatistics {
    std::int64_t figures = 0;
    std::int64_t compared = 0;
    std::int64_t refused = 0;      // the combination cannot be planned
    std::int64_t notPredicted = 0; // planned, but plans have no such figure
    std::int64_t cannotBeRight = 0;
    std::optional<double> median; // of absolute errors
    std::optional<double> mean;   // of absolute errors; in per cent it is the MAPE
    std::optional<double> worst;  // largest absolute error
    std::optional<double> bias;   // mean of signed errors
};

/// What another tool says of itself on the very same figures.
struct PeerClaim {
    std::string source; // as LedgerRow::source
    LedgerQuantity quantity = LedgerQuantity::Time;
    std::string peer;
    std::optional<double> mean;  // of absolute errors
    std::optional<double> worst; // largest absolute error
    std::string origin;          // where it is published
};

/// Every claim that is known on figures of the ledger.
const std::vector<PeerClaim>& peerClaims();

struct LedgerSource {
    std::string name;
    ErrorStatistics memory;
    ErrorStatistics time;
    std::int64_t verdicts = 0;
    std::int64_t verdictsRight = 0;
    std::vector<PeerClaim> peers;
};

struct Ledger {
    std::vector<LedgerSource> sources; // in the order of the files
    LedgerSource all;                  // under the name "all"; its median is over figures, not over sources
    std::vector<LedgerRow> rows;       // in the order of files, scenarios and figures
};

ErrorStatistics errorStatistics(const std::vector<const FigureComparison*>& figures);

/// The ledger of rows that are predicted already.
Ledger ledgerOf(std::vector<LedgerRow> rows);

/// The files of scenarios/published/ that the ledger is made of, sorted.
std::vector<std::string> ledgerFiles();

/// The name of a file's figures in the ledger.
std::string ledgerSourceName(const std::string& file);

/// Called from the calling thread after some scenarios: how many are done of how many; false ends the run.
using LedgerProgress = std::function<bool(std::int64_t done, std::int64_t total)>;

/// Reads and predicts the files' scenarios on all cores. Nothing when `progress` ended it. InputError when a file is
/// wrong.
std::optional<Ledger> predictLedger(const std::vector<std::string>& files, const LedgerProgress& progress = {});

} // namespace shardwright
