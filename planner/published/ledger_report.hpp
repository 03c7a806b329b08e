#pragma once

// The accuracy ledger, for people and for programs.

#include "core/json.hpp"
#include "planner/published/ledger.hpp"
#include "planner/report/table.hpp"

namespace shardwright {

inline constexpr const char* kLedgerSchema = "shardwright-ledger/1";

/// One row per source that has figures of the quantity, and one for all.
Table ledgerTable(const Ledger& ledger, LedgerQuantity quantity);

/// One row per figure of memory or time, with its error.
Table ledgerRowTable(const Ledger& ledger);

/// Memory and time by source, what is refused and why, where the peers' figures come from; with `rows` every figure
/// before that.
std::string ledgerText(const Ledger& ledger, const OutputStyle& style, bool rows);

/// Errors are shares. `rows` adds every figure.
Json ledgerToJson(const Ledger& ledger, bool rows);

/// One line per source and quantity, or with `rows` per figure.
std::string ledgerCsv(const Ledger& ledger, bool rows);

} // namespace shardwright
