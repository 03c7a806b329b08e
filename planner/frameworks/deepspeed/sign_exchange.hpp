#pragma once

// What 1-bit optimizers send in place of gradients once they are warm: their momentum, as signs, with error feedback
// (runtime/fp16/onebit, "onebit"; compressed_allreduce of runtime/comm/nccl.py, "compressed_allreduce"). Each rank
// compresses all of a tensor and sends every rank its part of the signs; each averages its part, compresses that again
// and sends it to all.

#include <map>
#include <vector>

#include "planner/frameworks/deepspeed/recording.hpp"
#include "planner/frameworks/deepspeed/tensor_order.hpp"

namespace shardwright {

class SignExchange {
public:
    /// `together`: the momentum of all tensors is compressed as one (FP16_Optimizer's flat group, onebit/lamb.py's
    /// fused momentum); otherwise tensor by tensor.
    SignExchange(const FlatOrder& order, bool together);

    /// Adds classes and payloads. `executes`: for shardrun, which makes no temporaries of elementwise kernels.
    void define(SizeTable& sizes, std::int64_t ranks, GroupId world, DType model, bool executes);

    /// Of worker and server together.
    Bytes errorBytes() const;

private:
    friend class SignExchangeEmission;

    /// Of exchanges of equal length.
    struct Classes {
        BufferClassId workerError = -1, serverError = -1;
        BufferClassId values = -1, signTemporaries = -1, packed = -1, signs = -1, scale = -1;
        BufferClassId received = -1, scales = -1, unpacked = -1, mean = -1, serverSigns = -1;
        PayloadId sendSigns = -1, sendScale = -1, gatherSigns = -1, gatherScale = -1;
        PayloadId compress = -1, recompress = -1, expand = -1;
    };
    struct Exchange {
        std::int64_t elements = 0;
        std::size_t firstTensor = 0; // of FlatOrder
        std::size_t endTensor = 0;
    };

    Classes define(SizeTable& sizes, std::int64_t elements, DType model, bool executes) const;
    /// Parts of as many elements make up whole bytes of signs on every rank.
    std::int64_t multiple() const;
    std::int64_t padded(std::int64_t elements) const { return roundUp(elements, checkedMultiply(m_ranks, multiple())); }

    const FlatOrder& m_order;
    std::vector<Exchange> m_exchanges;
    std::map<std::int64_t, Classes> m_classes; // by length
    std::int64_t m_ranks = 1;
    GroupId m_world = -1;
};

/// Writes it into a schedule.
class SignExchangeEmission {
public:
    SignExchangeEmission(const SignExchange& rules, ScheduleBuilder& builder, ContentRecorder& record)
        : m_rules(rules), m_builder(builder), m_record(record)
    {
    }

    /// The error feedback: buffers of the current op that stay.
    void allocateErrors();
    /// The first of `moments` becomes the mean over all ranks of what they compressed.
    void exchange(BufferId moments);
    /// One rank sends nothing, but has the buffers all the same.
    void keepErrors();

private:
    struct Errors {
        BufferId worker = -1;
        BufferId server = -1;
    };

    void exchange(const SignExchange::Exchange& exchange, const Errors& errors, BufferId moments);
    const SignExchange::Classes& classesOf(const SignExchange::Exchange& exchange) const
    {
        return m_rules.m_classes.at(exchange.elements);
    }
    OpId op(OpKind kind, PayloadId payload, GroupId group = -1);
    /// The momentum's tensors as they are sent: all of them, this rank's part of each, or the parts of all ranks.
    Layout whole(const SignExchange::Exchange& exchange) const;
    Layout part(const SignExchange::Exchange& exchange) const;
    BufferId allocate(BufferClassId bufferClass, const Layout& layout, Codec codec, Quantity quantity) const;
    BufferId allocateScales(BufferClassId bufferClass, bool all) const;

    const SignExchange& m_rules;
    ScheduleBuilder& m_builder;
    ContentRecorder& m_record;
    std::vector<Errors> m_errors; // by exchange
};

} // namespace shardwright
