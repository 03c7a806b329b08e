#include "executor/run/gather_text.hpp"

#include <algorithm>
#include <cstring>

namespace shardwright {

std::vector<std::string> gatherText(const std::string& own, Transport& transport)
{
    const auto world = transport.communicator({"world", transport.ranks(), 1, 1});
    const auto ranks = static_cast<std::size_t>(transport.ranks());
    const auto length = static_cast<std::int64_t>(own.size());
    std::vector<std::int64_t> lengths(ranks);
    world->allGather(&length, lengths.data(), sizeof(length));
    const auto longest = static_cast<std::size_t>(*std::max_element(lengths.begin(), lengths.end()));
    std::string padded = own;
    padded.resize(longest);
    std::string all(longest * ranks, '\0');
    world->allGather(padded.data(), all.data(), static_cast<std::int64_t>(longest));
    std::vector<std::string> texts;
    for (std::size_t rank = 0; rank < ranks; ++rank)
        texts.push_back(all.substr(rank * longest, static_cast<std::size_t>(lengths[rank])));
    return texts;
}

} // namespace shardwright
