"""The columns of rows between the stages, and of the output."""

import pyarrow as pa

# The position of a row in the input; a number of 64 bits for random choices;
# what copies have in common; the indices of the matched queries; the SHA-256 of
# the image; its embedding.
POSITION, ID, CONTENT = '_position', '_id', '_content'
MATCHED, DIGEST, EMBEDDING = '_matched', '_digest', '_embedding'
INTERNAL = (POSITION, ID, CONTENT, MATCHED, DIGEST, EMBEDDING)
# Columns that the output has besides those of the input: a text's language, the
# cosine that a model gave; all queries that the text has, and those among them
# that chose the pair.
LANGUAGE, SCORE = 'language', 'clip_score'
MATCHED_QUERIES, QUERIES = 'matched_queries', 'queries'


def with_column(
  batch: pa.RecordBatch, name: str, values: pa.Array
) -> pa.RecordBatch:
  """Returns a batch with one more column, in place of one of its name."""
  index = batch.schema.get_field_index(name)
  if index >= 0:
    return batch.set_column(index, name, values)
  return batch.append_column(name, values)
