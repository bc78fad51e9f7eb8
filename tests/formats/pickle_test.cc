#include "file_builders.h"
#include "formats/pickle_reader.h"

namespace rwkvx {
namespace {

using namespace pickle;

std::vector<PickledTensor> read(const std::string& bytes) {
  // A block of its own size, so that ASan sees any byte read behind it.
  const std::vector<std::byte> copy(reinterpret_cast<const std::byte*>(bytes.data()),
                                    reinterpret_cast<const std::byte*>(bytes.data()) + bytes.size());
  return read_pickle(kTestFile, copy);
}

std::string error_of_pickle(const std::string& bytes) {
  try {
    read(bytes);
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::StartsWith(kTestFile));
    return error.what();
  }
  return "";
}
#define EXPECT_PICKLE_REFUSED(bytes, words) EXPECT_THAT(error_of_pickle(bytes), testing::HasSubstr(words))

TEST(Pickle, DescribesTensors) {
  const auto tensors =
      read(whole(dict(text("a") + some_tensor() + text("b") +
                      tensor(storage("HalfStorage", "7", 9), 2, {3}, {2}) + text("n") + "N")));
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].dtype, DType::f32);
  EXPECT_EQ(tensors[0].storage, "0");
  EXPECT_EQ(tensors[0].storage_elements, 6u);
  EXPECT_THAT(tensors[0].size, testing::ElementsAre(2, 3));
  EXPECT_THAT(tensors[0].stride, testing::ElementsAre(3, 1));
  EXPECT_EQ(tensors[1].name, "b");
  EXPECT_EQ(tensors[1].dtype, DType::f16);
  EXPECT_EQ(tensors[1].offset, 2u);
}

TEST(Pickle, UnderstandsWhatPicklersWrite) {
  const std::string t = some_tensor();
  const auto names = [](const std::string& bytes) {
    std::vector<std::string> out;
    for (const PickledTensor& tensor : read(bytes)) out.push_back(tensor.name);
    return out;
  };
  const auto only = testing::ElementsAre("a");
  // SETITEM; DICT; an OrderedDict with its attributes, as state_dict() gives; memo in all three forms.
  EXPECT_THAT(names(whole("}" + text("a") + t + "s")), only);
  EXPECT_THAT(names(whole("(" + text("a") + t + "d")), only);
  EXPECT_THAT(names(whole(global("collections", "OrderedDict") + ")R(" + text("a") + t + "u}(" +
                          text("_metadata") + "}ub")),
              only);
  const std::string ordered = global("collections", "OrderedDict");
  EXPECT_THAT(names(whole(ordered + "](](" + text("a") + t + "ee\x85R")), only);
  EXPECT_THAT(names(whole(ordered + "](" + text("a") + t + "\x86" + "e\x85R")), only);
  // POP of a value and of a mark, POP_MARK, and values of every kind that is no tensor.
  Bytes rest;
  rest.raw("(NK\1M\1\1J\1\1\1\1");
  rest.raw("\x8a\x0b").raw(std::string(11, '\xff'));  // LONG1, too long for a size
  rest.raw("\x8b").number<int32_t>(1).raw("\x7f");    // LONG4
  rest.raw("G").number<double>(0.5);                  // BINFLOAT
  rest.raw("U\1xT").number<int32_t>(1).raw("x");      // strings of Python 2
  rest.raw("C\1xB").number<uint32_t>(1).raw("x");     // bytes
  rest.raw("\x8e").number<uint64_t>(1).raw("x");      // BINBYTES8
  rest.raw("\x8d").number<uint64_t>(1).raw("x");      // BINUNICODE8
  rest.raw("\x88\x89)]}N0(0(N1l");
  EXPECT_THAT(names(whole(dict(text("a") + t + text("rest") + rest))), only);
  EXPECT_THAT(names(whole(text("a") + "q\1r" + std::string("\0\1\0\0", 4) + "\x94" + "0}h\1" + t + "sj" +
                          std::string("\0\1\0\0", 4) + "0h\2" + "0")),
              only);
}

TEST(Pickle, LaterProtocols) {
  const auto short_text = [](std::string_view value) {
    return std::string("\x8c") + static_cast<char>(value.size()) + std::string(value) + "\x94";
  };
  const std::string frame = "\x95" + std::string(Bytes().number<uint64_t>(99));
  const std::string rebuild = short_text("torch._utils") + short_text("_rebuild_tensor_v2") + "\x93\x94";
  const std::string type = short_text("torch") + short_text("FloatStorage") + "\x93";
  const std::string hooks = short_text("collections") + short_text("OrderedDict") + "\x93)R";
  for (char protocol : {'\2', '\3', '\4', '\5'}) {
    Bytes bytes;
    bytes.raw("\x80").number<char>(protocol).raw(frame).raw("}\x94").raw(short_text("a")).raw(rebuild);
    bytes.raw("((").raw(short_text("storage")).raw(type).raw(short_text("0")).raw(short_text("cuda:0"));
    bytes.raw("K\6tQ").raw(integer(0)).raw("K\6\x85K\1\x85\x88").raw(hooks).raw("tRs.");
    const auto tensors = read(bytes);
    ASSERT_EQ(tensors.size(), 1u);
    EXPECT_EQ(tensors[0].name, "a");
    EXPECT_EQ(tensors[0].storage, "0");
    EXPECT_THAT(tensors[0].size, testing::ElementsAre(6));
  }
}

TEST(Pickle, ParametersAndTorchSize) {
  const std::string parameter = global("torch._utils", "_rebuild_parameter") + some_tensor() + "\x88" +
                                global("collections", "OrderedDict") + ")R\x87R";
  const std::string size = global("torch", "Size") + tuple({2, 3}) + "\x85R";
  const auto tensors = read(whole(dict(text("p") + parameter + text("shape") + size)));
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].name, "p");
  EXPECT_THAT(tensors[0].size, testing::ElementsAre(2, 3));
}

TEST(Pickle, FindsTheOneDictionaryOfTensors) {
  const std::string inner = dict(text("a") + some_tensor());
  for (const char* key : {"state_dict", "model", "anything"}) {
    EXPECT_EQ(read(whole(dict(text(key) + inner + text("step") + integer(3)))).at(0).name, "a");
  }
  // The moments of an optimizer lie deeper and are no weights.
  const std::string moments = dict(text("state") + dict(integer(0) + dict(text("exp_avg") + some_tensor())));
  EXPECT_EQ(read(whole(dict(text("model") + inner + text("optimizer") + moments))).size(), 1u);
  // One dictionary under two keys is one.
  EXPECT_EQ(read(whole(dict(text("x") + inner + "q\1" + text("y") + "h\1"))).size(), 1u);

  EXPECT_PICKLE_REFUSED(whole(dict(text("a") + some_tensor() + text("m") + inner)),
                        "several places (the top, \"m\")");
  EXPECT_PICKLE_REFUSED(whole(dict(text("m") + inner + text("ema") + inner)),
                        "several places (\"m\", \"ema\")");
  EXPECT_PICKLE_REFUSED(whole(dict(text("x") + dict(text("y") + inner))), "holds no tensors");
  EXPECT_PICKLE_REFUSED(whole("}"), "holds no tensors");
  EXPECT_PICKLE_REFUSED(whole(some_tensor()), "one tensor without a name");
  EXPECT_PICKLE_REFUSED(whole("](" + some_tensor() + "e"), "instead of a dictionary");
  EXPECT_PICKLE_REFUSED(whole(dict(integer(5) + some_tensor())), "a tensor under 5");
  EXPECT_PICKLE_REFUSED(whole(dict(text("a") + some_tensor() + text("a") + some_tensor())),
                        "\"a\" is there twice");
}

TEST(Pickle, CodeIsRefusedByNameAndNeverRun) {
  const std::string command = text("touch /tmp/rwkvx-was-here");
  const struct {
    const char *module, *name;
  } calls[] = {{"os", "system"},
               {"posix", "system"},
               {"builtins", "eval"},
               {"__builtin__", "exec"},
               {"subprocess", "Popen"},
               {"torch", "load"},
               {"torch._utils", "_rebuild_tensor_v3"},
               {"torch.nn.modules.linear", "Linear"},
               {"collections", "OrderedDict.__init__"},
               {"torch", "_utils._rebuild_tensor_v2"}};
  for (const auto& call : calls) {
    const std::string named = fmt::format("names {}.{}", call.module, call.name);
    EXPECT_PICKLE_REFUSED(whole(global(call.module, call.name) + command + "\x85R"), named);
    EXPECT_PICKLE_REFUSED(whole(global(call.module, call.name)), "tries to run code");
    EXPECT_PICKLE_REFUSED(whole(text(call.module) + text(call.name) + "\x93" + command + "\x85R"), named);
    EXPECT_PICKLE_REFUSED(whole("(" + command + "i" + call.module + "\n" + call.name + "\n"), named);
    EXPECT_PICKLE_REFUSED(whole(dict(text("a") + some_tensor() + text("b") + global(call.module, call.name) +
                                     command + "\x85R")),
                          named);
  }
  // Objects made of what may be named.
  const std::string dict_class = global("collections", "OrderedDict");
  EXPECT_PICKLE_REFUSED(whole(dict_class + ")\x81"), "builds an object");
  EXPECT_PICKLE_REFUSED(whole(dict_class + ")}\x92"), "builds an object");
  EXPECT_PICKLE_REFUSED(whole("(" + dict_class + "o"), "builds an object");
  EXPECT_PICKLE_REFUSED(whole("(icollections\nOrderedDict\n"), "builds an object");
  EXPECT_PICKLE_REFUSED(whole("\x82\1"), "builds an object");
  EXPECT_PICKLE_REFUSED(whole(global("torch", "FloatStorage") + integer(9) + "\x85R"),
                        "makes a storage by a call");
  EXPECT_PICKLE_REFUSED(whole(dict(text("a") + some_tensor() + "}b")), "sets attributes of an object");
  EXPECT_PICKLE_REFUSED(whole(text("os.system") + command + "\x85R"), "cannot be called");
  EXPECT_PICKLE_REFUSED(whole(some_tensor() + ")R"), "cannot be called");
  EXPECT_PICKLE_REFUSED(whole("Pos.system\n"), "opcode 0x50");
  // A name that would break the line of the message.
  EXPECT_EQ(error_of_pickle(whole(text("o\ns") + text("sys\ntem") + "\x93")).find('\n'), std::string::npos);
}

TEST(Pickle, UnsupportedStoragesAreNamed) {
  EXPECT_PICKLE_REFUSED(whole(dict(text("c") + tensor(storage("ComplexFloatStorage", "0", 1), 0, {1}, {1}))),
                        "torch's ComplexFloatStorage, which is not supported");
  const std::string untyped = "(" + text("storage") + global("torch.storage", "UntypedStorage") + text("0") +
                              text("cpu") + integer(24) + "tQ";
  EXPECT_PICKLE_REFUSED(whole(dict(text("u") + tensor(untyped, 0, {24}, {1}))), "without a type");
}

TEST(Pickle, CyclesAreRefused) {
  EXPECT_PICKLE_REFUSED(whole("}q\1" + text("model") + "h\1s"), "contains itself");
  EXPECT_PICKLE_REFUSED(whole("}q\1(" + text("a") + some_tensor() + text("me") + "h\1u"), "contains itself");
  EXPECT_PICKLE_REFUSED(whole("}" + text("l") + "]q\1h\1as"), "contains itself");
  EXPECT_PICKLE_REFUSED(whole("}" + text("l") + "]q\1h\1\x85" + "as"), "contains itself");
  EXPECT_PICKLE_REFUSED(whole("}q\1" + text("x") + "}q\2" + text("y") + "h\1ss"), "contains itself");
}

TEST(Pickle, DeepAndWideStructuresAreHarmless) {
  // A million nested tuples; 60 lists, each holding the one before twice: neither may cost more than its
  // bytes.
  const std::string deep = ")" + std::string(1000000, '\x85');
  EXPECT_EQ(read(whole(dict(text("a") + some_tensor() + text("d") + deep))).size(), 1u);
  std::string laughs = "]q\1";
  for (int i = 0; i < 60; ++i) laughs += "](h\1h\1eq\1";
  EXPECT_EQ(read(whole(dict(text("a") + some_tensor() + text("l") + "(" + laughs + "l"))).size(), 1u);
}

TEST(Pickle, BoundsAreKept) {
  EXPECT_PICKLE_REFUSED(whole(std::string(2000000, 'N')), "a stack higher than any model needs");
  EXPECT_PICKLE_REFUSED(whole(std::string(2000000, '(')), "marks nested deeper");
  std::string values;
  for (int i = 0; i < 2200000; ++i) values += "]0";
  EXPECT_PICKLE_REFUSED(whole(values), "more values than any model has");
  std::string memo = "N";
  for (uint32_t i = 0; i < 2200000; ++i) memo += "r" + std::string(Bytes().number<uint32_t>(i * 1900));
  EXPECT_PICKLE_REFUSED(whole(memo), "more memo entries");
}

TEST(Pickle, DamageIsRefused) {
  EXPECT_PICKLE_REFUSED("", "cut short");
  EXPECT_PICKLE_REFUSED("}.", "no protocol");
  for (char protocol : {'\0', '\1', '\6'}) {
    EXPECT_PICKLE_REFUSED(std::string("\x80") + protocol + "}.", "has protocol");
  }
  EXPECT_PICKLE_REFUSED("\x80\x02}", "cut short");
  EXPECT_PICKLE_REFUSED(whole("}") + "x", "bytes behind the end");
  EXPECT_PICKLE_REFUSED(whole(""), "before everything is put together");
  EXPECT_PICKLE_REFUSED(whole("}}"), "before everything is put together");
  EXPECT_PICKLE_REFUSED(whole("(}"), "before everything is put together");
  EXPECT_PICKLE_REFUSED(whole("h\7"), "never stored");
  EXPECT_PICKLE_REFUSED(whole("q\7"), "an empty stack");
  EXPECT_PICKLE_REFUSED(whole("}(0s"), "an empty stack");
  EXPECT_PICKLE_REFUSED(whole("N(\x85t"), "an empty stack");  // may not reach below the mark
  EXPECT_PICKLE_REFUSED(whole("t"), "no mark");
  EXPECT_PICKLE_REFUSED(whole("}Na"), "something that is no list");
  EXPECT_PICKLE_REFUSED(whole("]NNs"), "no dictionary");
  EXPECT_PICKLE_REFUSED(whole("}(Nu"), "a key without a value");
  EXPECT_PICKLE_REFUSED(whole("NNR"), "cannot be called");
  EXPECT_PICKLE_REFUSED(whole("NN\x93"), "a global without a name");
  EXPECT_PICKLE_REFUSED(whole("NQ"), "not described as torch does");
  EXPECT_PICKLE_REFUSED(whole("(NNNNNtQ"), "not described as torch does");
  EXPECT_PICKLE_REFUSED(whole("c" + std::string(300, 'x')), "a name longer than any");
  EXPECT_PICKLE_REFUSED(whole("cos"), "cut short");
  EXPECT_PICKLE_REFUSED(whole("X\xff\xff\xff\xffx"), "cut short");
  EXPECT_PICKLE_REFUSED(whole("\x8d\xff\xff\xff\xff\xff\xff\xff\xffx"), "cut short");
  EXPECT_PICKLE_REFUSED(whole("T\xff\xff\xff\xffx"), "negative length");
  EXPECT_PICKLE_REFUSED(whole("\x8b\xff\xff\xff\xffx"), "negative length");
  EXPECT_PICKLE_REFUSED(whole("\x8f"), "opcode 0x8f");
  EXPECT_PICKLE_REFUSED(whole("\xff"), "opcode 0xff");
}

TEST(Pickle, TensorArgumentsAreChecked) {
  const std::string good = storage("FloatStorage", "0", 6);
  const auto refused = [](const std::string& piece) {
    return error_of_pickle(whole(dict(text("a") + piece)));
  };
  EXPECT_THAT(refused(tensor(good, 0, {2, 3}, {1})), testing::HasSubstr("2 dimensions but 1 strides"));
  EXPECT_THAT(refused(tensor(good, -1, {6}, {1})), testing::HasSubstr("begins before its storage"));
  EXPECT_THAT(refused(tensor(good, 0, {-6}, {1})), testing::HasSubstr("negative size or stride"));
  EXPECT_THAT(refused(tensor(good, 0, {6}, {-1})), testing::HasSubstr("negative size or stride"));
  EXPECT_THAT(refused(tensor("N", 0, {6}, {1})), testing::HasSubstr("arguments of other types"));
  EXPECT_THAT(refused(tensor(storage("FloatStorage", "0", -6), 0, {6}, {1})),
              testing::HasSubstr("negative size"));
  const std::string rebuild = global("torch._utils", "_rebuild_tensor_v2");
  EXPECT_THAT(refused(rebuild + ")R"), testing::HasSubstr("six or seven arguments"));
  EXPECT_THAT(refused(rebuild + "(" + good + integer(0) + "(Nt(Nt\x89NtR"),
              testing::HasSubstr("arguments of other types"));
  EXPECT_THAT(refused(global("torch._utils", "_rebuild_parameter") + "(N\x88NtR"),
              testing::HasSubstr("a parameter that is no tensor"));
  EXPECT_THAT(refused(global("torch", "Size") + ")R"), testing::HasSubstr("a torch.Size that is no tuple"));
  EXPECT_THAT(refused(global("collections", "OrderedDict") + "(NtR"),
              testing::HasSubstr("something else than pairs"));
}

}  // namespace
}  // namespace rwkvx
