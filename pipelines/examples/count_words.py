"""Answers every caption with the number of its words."""
import json
import sys

for line in sys.stdin:
    record = json.loads(line)
    if "caption" in record:
        answer = {"id": record["id"], "words": len(record["caption"].split())}
    else:
        answer = {"error": "no caption"}
    print(json.dumps(answer), flush=True)
